"""Applications of the smoothing: comparisons that are not in the paper."""
