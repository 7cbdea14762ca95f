"""Samplers as values: frozen, compared, hashed, printed, changed and stored."""

from __future__ import annotations

import dataclasses
import pickle

import jax
import pytest

import lejax

SAMPLERS = (
    lejax.importance(1000),
    lejax.importance(20, antithetic=False, axis_name="i", shaping="ranks"),
    lejax.importance_by_example(8, chunk_size=4),
    lejax.score_function(9, credit=False),
    lejax.pathwise(3, reduction=False),
    lejax.sgld(5, 0.1, num_chains=2, temperature=0.5),
    lejax.robbins_monro(3, 4, 0.1, smoothing=0.2, data_axis_name="rows"),
)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_a_sampler_is_its_settings(sampler):
    again = eval(repr(sampler), vars(lejax))
    assert again == sampler
    assert hash(again) == hash(sampler)
    assert pickle.loads(pickle.dumps(sampler)) == sampler
    other = dataclasses.replace(sampler, axis_name="other")
    assert other != sampler
    assert dataclasses.replace(other, axis_name=sampler.axis_name) == sampler
    with pytest.raises(dataclasses.FrozenInstanceError):
        sampler.axis_name = "members"


def test_samplers_of_all_devices():
    sampler = lejax.parallel(lejax.importance(4))
    assert sampler == lejax.parallel(lejax.importance(4))
    assert sampler != lejax.parallel(lejax.importance(6))
    assert repr(sampler).startswith("parallel(importance(4), Mesh(")
    assert sampler.name == "importance"
    assert sampler.traits.reads_again


def test_bad_settings_are_refused_by_replace_as_well():
    with pytest.raises(ValueError, match="num_samples must be an integer of at least"):
        dataclasses.replace(lejax.importance(4), num_samples=0)
    with pytest.raises(ValueError, match="axis_name and data_axis_name are both 'i'"):
        dataclasses.replace(SAMPLERS[1], data_axis_name="i")


def test_a_sampler_may_hold_what_cannot_be_hashed():
    """Then it is compiled as it is, without being kept."""
    sampler = lejax.sgld(3, jax.numpy.asarray(0.01))
    with pytest.raises(TypeError, match="unhashable"):
        hash(sampler)
    x = jax.numpy.ones(2)
    tx = lejax.local_entropy(sampler, 0.1, key=jax.random.key(0))
    updates, _ = tx.update(None, tx.init(x), x, value_fn=lambda x: (x**2).sum())
    assert jax.numpy.isfinite(updates).all()
