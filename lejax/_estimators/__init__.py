"""Draws, and averages over them: weights, moments, effective samples, shaping."""
