"""The loss as a program: how it uses each leaf, and how it sums over examples."""
