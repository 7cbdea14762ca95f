"""Where a sampler draws: in all parameters, or in the directions that matter."""
