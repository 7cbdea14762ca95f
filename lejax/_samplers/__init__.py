"""The samplers, a file each, and the interface that they share."""
