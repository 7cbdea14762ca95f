"""Searches of black boxes, by the functions of their field."""
