"""Whole runs on the host: `minimize`, and `ask_tell` for losses from elsewhere."""
