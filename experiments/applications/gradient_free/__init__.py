"""Objectives without a gradient, and the searches that are compared on them."""
