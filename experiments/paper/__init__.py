"""The tables, figures, theorems and sections of the paper, one file for each."""
