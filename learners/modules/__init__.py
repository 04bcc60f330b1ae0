"""Methods as parts of one ranker: each adds to the first hidden layer or to the logit."""
