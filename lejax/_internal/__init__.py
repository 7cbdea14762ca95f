"""Code that all other folders use: types, trees, random draws, checks, mesh axes."""
