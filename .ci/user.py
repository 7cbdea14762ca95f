"""What a user's type checker must find nothing wrong with."""

import jax
import jax.numpy as jnp
import optax

import lejax


def loss(x: jax.Array) -> jax.Array:
    """Of any kind."""
    return jnp.sum(x**2)


x, key = jnp.ones(3), jax.random.key(0)
sampler: lejax.Sampler = lejax.importance(10, chunk_size=4)
moved = lejax.step_fn(loss, sampler, tau=0.5, beta=2.0)(x, key)
(value, info), grads = lejax.value_and_grad(loss, lejax.pathwise(2), tau=0.5)(x, key)
size: jax.Array = info.effective_sample_size
tx = optax.chain(
    lejax.local_entropy(lejax.sgld(10, 0.1), lejax.scoping(1.5, 0.01), key=key),
    optax.sgd(0.1),
)
updates, state = tx.update(x, tx.init(x), x, value_fn=loss)
heat = lejax.heat(lejax.parallel(lejax.robbins_monro(3, 4, 0.5)), tau=0.1, key=key)
entropy_sgd = lejax.entropy_sgd(0.5, 10.0, key=key, num_steps=5)
report: str = lejax.reduction_report(loss, x).leaves[0].reason
result = lejax.minimize(
    loss,
    x,
    tau=lejax.target_share(optax.linear_schedule(0.1, 0.7, 10), 1e-3),
    key=key,
    num_updates=10,
    callback=lambda step, params, info: step > 3,
)
last = result.history.objective[-1].item()
by_schedule = lejax.local_entropy(
    lejax.sgld(10, lambda j: 1 / (1000 + j), averaging=0.75),
    optax.linear_schedule(0.1, 0.01, 10),
    key=key,
    mask=lambda params: True,
)
posterior = lejax.negative_log_posterior(
    lambda u: jnp.full(10, u), lambda u: -(u**2) / 2, [2.0] * 10, 1.0
)
