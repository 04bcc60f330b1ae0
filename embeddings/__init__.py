"""Item content to vectors: encoders, vector codec and store. Knows no stream."""
