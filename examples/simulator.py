"""A simulator outside of JAX: SciPy's ODE solver on two processes, one of which dies.

It estimates four rates of a predator-prey model from noisy counts, with uncertainty.
"""

import multiprocessing
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
from pebble import ProcessPool
from scipy.integrate import solve_ivp

import lejax

TRUTH, GUESS = np.log([0.55, 0.028, 0.84, 0.026]), np.log([1.0, 0.05, 1.0, 0.05])


def logarithms(u):
    a, b, c, d = np.exp(u)
    slope = lambda _, n: [n[0] * (a - b * n[1]), n[1] * (d * n[0] - c)]  # noqa: E731
    found = solve_ivp(slope, (0, 20), [30.0, 4.0], t_eval=np.linspace(0, 20, 21))
    if not found.success:
        raise ArithmeticError(found.message)
    return np.log(found.y)


COUNTS = logarithms(TRUTH) + 0.1 * np.random.default_rng(0).normal(size=(2, 21))


def minus_log_posterior(u):
    misfit = ((logarithms(u) - COUNTS) ** 2).sum() / (2 * 0.1**2)
    return misfit + ((u - GUESS) ** 2).sum() / 2


if __name__ == "__main__":
    sampler = lejax.importance(100, beta_share=0.3)
    smooth = lejax.gaussian(
        sampler, 0.1, key=jax.random.key(0), covariance="full", temperature=1.0
    )
    search = lejax.ask_tell(optax.chain(smooth, optax.sgd(1.0)))
    u, lost = jnp.asarray(GUESS, jnp.float32), 0
    state = search.init(u)
    with ProcessPool(2, context=multiprocessing.get_context("spawn")) as pool:
        for step in range(40):
            points = search.ask(state, u)
            runs = [
                pool.schedule(minus_log_posterior, (x,), timeout=30) for x in points
            ]
            if step == 20:  # this run kills its process
                runs[10] = pool.schedule(os.abort)
            found = [np.nan if run.exception() else run.result() for run in runs]
            lost += np.isnan(found).sum()
            updates, state = search.tell(points, found, state, u)
            u = optax.apply_updates(u, updates)
    deviations = state.inner[0].covariance.variances(u) ** 0.5
    print(f"{lost} lost, rates {jnp.exp(u)}, uncertain by {deviations} of themselves")
    print(f"off by at most {jnp.abs((u - TRUTH) / deviations).max():.2f} deviations")
