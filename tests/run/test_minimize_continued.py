"""A run of `minimize` that continues: from its state, after a rule, after Ctrl-C."""

from __future__ import annotations

import concurrent.futures
import signal

import jax
import numpy as np
import optax
import pytest
from cases.runs import (
    BATCHES,
    SCHEDULE,
    SLOW,
    X,
    assert_close,
    loss,
    minimize,
    numbers,
)

import lejax

CONTINUED = {
    "momentum, a schedule of tau": {"tau": SCHEDULE, "optimizer": SLOW},
    "a rate that falls": {"optimizer": optax.sgd(SCHEDULE, 0.5)},
    "an adaptive beta": {"sampler": lejax.importance(40, beta_share=0.5)},
    "a chain that is carried over": {
        "sampler": lejax.sgld(50, 0.1, warm_start=True),
    },
    "patience": {"patience": 3},
}


@pytest.mark.parametrize("name", CONTINUED)
def test_a_run_continues_where_it_was(name):
    """In one go, or in parts: the same draws, schedules, moments and windows."""
    options = CONTINUED[name]
    whole = minimize(loss, X, batches=BATCHES, **options)
    result = minimize(loss, X, batches=BATCHES[:3], **options)
    parts = [result]
    for batches_left in (BATCHES[3:5], BATCHES[5:]):
        result = minimize(
            loss, result.params, state=result.state, batches=batches_left, **options
        )
        parts.append(result)
    history = [part.history.objective[: part.num_updates] for part in parts]
    np.testing.assert_array_equal(
        np.concatenate(history), whole.history.objective[: whole.num_updates]
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(numbers(a), numbers(b)),
        (whole.params, whole.state),
        (result.params, result.state),
    )


def test_a_run_continues_after_a_rule_has_ended_it():
    """From the parameters that the rule judged, by the same draws."""
    ended = minimize(target_value=0.9)
    assert ended.reason == "target_value"
    again = minimize(params=ended.params, state=ended.state, target_value=0.9)
    assert (again.reason, again.num_updates) == ("target_value", 0)
    rest = 12 - ended.num_updates
    going = minimize(params=ended.params, state=ended.state, num_updates=rest)
    whole = minimize()
    assert_close(going.params, whole.params)
    stale = minimize(patience=2, num_updates=60)
    assert stale.reason == "patience"
    more = minimize(params=stale.params, state=stale.state, patience=2, num_updates=60)
    assert more.num_updates >= 2  # it counts anew


def test_a_state_that_does_not_fit():
    state = minimize().state
    for options in ({"optimizer": SLOW}, {"state": tuple(state)}):
        with pytest.raises(ValueError, match="state must come from a run with the sam"):
            minimize(**{"state": state, **options})


def test_ctrl_c_ends_a_run_with_what_there_is():
    """After the block; the run continues as if nothing had happened."""
    handler = signal.getsignal(signal.SIGINT)

    def press(step, *_):
        if step == 4:
            signal.raise_signal(signal.SIGINT)

    with pytest.warns(UserWarning, match="Ctrl-C ended the run after 4 updates"):
        result = minimize(block_size=4, callback=press)
    assert (result.reason, result.success) == ("interrupted", False)
    assert result.history.objective.size == 5
    assert signal.getsignal(signal.SIGINT) is handler
    rest = minimize(params=result.params, state=result.state, num_updates=8)
    assert_close(rest.params, minimize().params)

    def press_twice(*_):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        minimize(callback=press_twice)
    assert signal.getsignal(signal.SIGINT) is handler


def test_ctrl_c_is_left_to_others():
    """A handler of the user's stays, and other threads have none."""
    pressed = []
    before = signal.signal(signal.SIGINT, lambda *_: pressed.append(1))
    try:
        minimize(callback=lambda *_: signal.raise_signal(signal.SIGINT))
    finally:
        signal.signal(signal.SIGINT, before)
    assert pressed
    with concurrent.futures.ThreadPoolExecutor() as pool:
        assert pool.submit(minimize).result().num_updates == 12
