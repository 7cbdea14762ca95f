"""The covariance that `gaussian` learns: its structures, and its update."""
