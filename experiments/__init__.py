"""The paper's study and what goes beyond it; docs/study lists the commands."""

import os

# The QR of the reduction goes through OpenBLAS, whose threads wait by spinning: an
# update takes longer with two of them than with one. Read when NumPy is imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
