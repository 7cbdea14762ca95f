"""Samplers as optax transformations and as pure functions."""
