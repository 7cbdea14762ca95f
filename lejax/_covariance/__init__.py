"""The covariance of a Gaussian that learns: structures, and their update."""
