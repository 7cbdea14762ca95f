"""Flax linen with `TrainState`: `lejax.value_and_grad` makes the gradients.

`TrainState` passes no `value_fn` to its optimizer, which `local_entropy` would need.
"""

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax.training.train_state import TrainState

import lejax

points = jax.random.normal(jax.random.key(0), (1000, 2))
labels = (points[:, 0] * points[:, 1] > 0).astype(jnp.int32)


class Network(nn.Module):
    @nn.compact
    def __call__(self, points):
        return nn.Dense(2)(nn.tanh(nn.Dense(16)(points)))


network = Network()


def mistakes(params, batch):
    points, labels = batch
    return jnp.mean(network.apply(params, points).argmax(-1) != labels)


state = TrainState.create(
    apply_fn=network.apply,
    params=network.init(jax.random.key(1), points),
    tx=optax.sgd(5.0),
)
smoothed = lejax.value_and_grad(mistakes, lejax.importance(200), tau=0.05, beta=100.0)


@jax.jit
def update(state, key, batch):
    (value, info), grads = smoothed(state.params, key, batch)
    return state.apply_gradients(grads=grads), value, info


before = mistakes(state.params, (points, labels))
for key in jax.random.split(jax.random.key(2), 300):
    row_key, draw_key = jax.random.split(key)
    rows = jax.random.randint(row_key, (100,), 0, 1000)
    state, value, info = update(state, draw_key, (points[rows], labels[rows]))
print(f"local entropy: {value:.2f} ± {info.standard_error:.2f}")
print(f"mistakes: {before:.2f} -> {mistakes(state.params, (points, labels)):.2f}")
