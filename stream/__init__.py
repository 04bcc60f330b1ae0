"""Events to samples: decode, sequence, join, assemble; and the shells around them."""
