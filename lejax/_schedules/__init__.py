"""Numbers that change from update to update."""
