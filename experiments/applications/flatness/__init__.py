"""The flatness of minima, by method of training."""
