"""Measurements of the library itself: time, memory, several processes, errors."""
