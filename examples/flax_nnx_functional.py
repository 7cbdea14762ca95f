"""Flax NNX as pure functions, with batch statistics and dropout.

`has_aux` returns the batch statistics at the parameters themselves. The dropout key is
a part of the batch, so all samples of an update share one mask.
"""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import lejax

points = jax.random.normal(jax.random.key(0), (1000, 2))
labels = (points[:, 0] * points[:, 1] > 0).astype(jnp.int32)


class Network(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(2, 32, rngs=rngs)
        self.norm = nnx.BatchNorm(32, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(0.1)
        self.out = nnx.Linear(32, 2, rngs=rngs)

    def __call__(self, points, key=None):
        hidden = nnx.tanh(self.norm(self.hidden(points)))
        return self.out(self.dropout(hidden, rngs=key))


graph, params, rest = nnx.split(Network(nnx.Rngs(0)), nnx.Param, ...)


def value_fn(params, batch):
    points, labels, key, rest = batch
    model = nnx.merge(graph, params, rest, copy=True)
    loss = optax.softmax_cross_entropy_with_integer_labels(model(points, key), labels)
    loss = loss.mean()
    return loss, (loss, nnx.state(model, nnx.Not(nnx.Param)))


smooth = lejax.heat(lejax.pathwise(4), tau=0.01, key=jax.random.key(1), has_aux=True)
tx = optax.chain(smooth, optax.adam(0.02))


@jax.jit
def update(params, state, batch):
    updates, state = tx.update(None, state, params, value_fn=value_fn, batch=batch)
    loss, rest = optax.tree.get(state, "info").aux
    return optax.apply_updates(params, updates), state, loss, rest


state = tx.init(params)
for key in jax.random.split(jax.random.key(2), 100):
    rows = jax.random.randint(key, (100,), 0, 1000)
    batch = points[rows], labels[rows], key, rest
    params, state, loss, rest = update(params, state, batch)
model = nnx.merge(graph, params, rest)
model.eval()
print(f"mistakes: {jnp.mean(model(points).argmax(-1) != labels):.2f}")
