"""Formats numbers for printing: rounded, with their errors."""

from __future__ import annotations

import math


def estimate_text(value: float, error: float) -> str:
    """A value, and its error if this was estimated."""
    if not math.isfinite(value):
        return "not estimated" if math.isnan(value) else f"{value}"
    return f"{value:.4g}" + (f" ± {error:.1g}" if math.isfinite(error) else "")


def share_text(value: float, of: str) -> str:
    """A share as a percentage."""
    return "not estimated" if math.isnan(value) else f"{value:.0%} {of}"
