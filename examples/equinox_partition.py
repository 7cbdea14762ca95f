"""Equinox: partition a model, and train its inexact arrays."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

import lejax

points = jax.random.normal(jax.random.key(0), (1000, 2))
labels = (points[:, 0] * points[:, 1] > 0).astype(jnp.int32)
model = eqx.nn.MLP(2, 2, 16, 1, jax.nn.tanh, key=jax.random.key(1))
params, static = eqx.partition(model, eqx.is_inexact_array)


def mistakes(params, batch):
    points, labels = batch
    logits = jax.vmap(eqx.combine(params, static))(points)
    return jnp.mean(logits.argmax(-1) != labels)


tx = optax.chain(
    lejax.local_entropy(
        lejax.importance(200), tau=0.05, beta=100.0, key=jax.random.key(2)
    ),
    optax.sgd(5.0),
)


@eqx.filter_jit
def update(params, state, batch):
    updates, state = tx.update(None, state, params, value_fn=mistakes, batch=batch)
    return eqx.apply_updates(params, updates), state


before = mistakes(params, (points, labels))
state = tx.init(params)
for key in jax.random.split(jax.random.key(3), 300):
    rows = jax.random.randint(key, (100,), 0, 1000)
    params, state = update(params, state, (points[rows], labels[rows]))
info = optax.tree.get(state, "info")
print(f"effective samples of 200: {info.effective_sample_size:.0f}")
print(f"mistakes: {before:.2f} -> {mistakes(params, (points, labels)):.2f}")
