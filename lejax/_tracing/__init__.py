"""The loss as a program: what it does with each leaf, and what the examples share."""
