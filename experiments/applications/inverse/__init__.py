"""Inverse problems, and the methods that are compared on them."""
