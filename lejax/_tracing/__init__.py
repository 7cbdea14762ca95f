"""The loss as a program: how it uses each leaf, and how its examples add up."""
