"""The paper's study and further comparisons; docs/study lists the commands."""

import os

# The QR decomposition of the reduction uses OpenBLAS. Its threads wait by spinning, so
# an update takes longer with two of them than with one. NumPy reads this at its import.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
