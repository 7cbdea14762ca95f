"""What the smoothing is good for: comparisons that are not the paper's."""
