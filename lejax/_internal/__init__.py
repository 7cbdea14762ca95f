"""What all others use: types, trees, random draws, checks, mesh axes, the call of f."""
