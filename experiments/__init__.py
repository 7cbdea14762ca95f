"""The paper's numerical study, run with lejax. Each file with a `main` is a command."""

import os

# The QR of the reduction goes through OpenBLAS, whose threads wait by spinning: an
# update takes longer with two of them than with one. Read when NumPy is imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
