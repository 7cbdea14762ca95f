"""The strict environment in which lejax's own code is tested."""

from __future__ import annotations

import jax
import matplotlib as mpl
import pytest

mpl.use("agg")


@pytest.fixture(autouse=True)
def strict_promotion(request):
    """No implicit promotion, except around other people's code (flax, experiments)."""
    mode = "standard" if request.node.get_closest_marker("standard") else "strict"
    with jax.numpy_dtype_promotion(mode):
        yield


@pytest.fixture(autouse=True, scope="module")
def quick_compilation(request):
    """Without XLA's costly passes, where tests compile for longer than they run."""
    before = jax.config.read("jax_disable_most_optimizations")
    if request.node.get_closest_marker("compiles"):
        jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
