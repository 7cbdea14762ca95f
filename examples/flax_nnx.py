"""Flax NNX with `nnx.Optimizer`, which passes `value_fn` and `batch` to the chain."""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import lejax

points = jax.random.normal(jax.random.key(0), (1000, 2))
labels = (points[:, 0] * points[:, 1] > 0).astype(jnp.int32)


class Network(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(2, 16, rngs=rngs)
        self.out = nnx.Linear(16, 2, rngs=rngs)

    def __call__(self, points):
        return self.out(nnx.tanh(self.hidden(points)))


def mistakes(model, batch):
    points, labels = batch
    return jnp.mean(model(points).argmax(-1) != labels)


model = Network(nnx.Rngs(0))
smooth = lejax.local_entropy(
    lejax.importance(200), tau=0.05, beta=100.0, key=jax.random.key(1)
)
optimizer = nnx.Optimizer(model, optax.chain(smooth, optax.sgd(5.0)), wrt=nnx.Param)


@nnx.jit
def update(model, optimizer, batch):
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def value_fn(params, batch):
        return mistakes(nnx.merge(graph, params, rest), batch)

    # The chain replaces the incoming gradients: pass any tree of their shapes.
    optimizer.update(model, params, value_fn=value_fn, batch=batch)


before = mistakes(model, (points, labels))
for key in jax.random.split(jax.random.key(2), 300):
    rows = jax.random.randint(key, (100,), 0, 1000)
    update(model, optimizer, (points[rows], labels[rows]))
info = nnx.as_pure(optimizer.opt_state)[0].info
print(f"effective samples of 200: {info.effective_sample_size:.0f}")
print(f"mistakes: {before:.2f} -> {mistakes(model, (points, labels)):.2f}")
