"""What is measured of the library itself: time, memory, several processes, errors."""
