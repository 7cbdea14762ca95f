"""The tables, figures, theorems and sections of the paper, a file each."""
