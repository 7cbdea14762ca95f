"""The coordinates in which a sampler draws: all parameters, or fewer directions."""
