"""What all others use: trees, random draws, checks, mesh axes, the loss's call."""
