"""One chain with two kinds of gradient, and a leaf that is not trained.

The gates have a hard threshold, and are trained on the local entropy of the loss. The
output layer is trained by back-propagation. The integer table stays as it is.
"""

import jax
import jax.numpy as jnp
import optax

import lejax

points = jax.random.normal(jax.random.key(0), (1000, 2))
labels = (points[:, 0] * points[:, 1] > 0).astype(jnp.int32)
keys = jax.random.split(jax.random.key(1), 3)
params = {
    "gates": jax.random.normal(keys[0], (2, 16)),  # behind a hard threshold
    "levels": jnp.array([-1, 1]),
    "out": {"w": jax.random.normal(keys[1], (16, 2)) / 4, "b": jnp.zeros(2)},
}
sampled = {"gates": True, "levels": False, "out": False}


def logits(params, points):
    fires = (points @ params["gates"] + jnp.linspace(-1, 1, 16) > 0).astype(jnp.int32)
    hidden = params["levels"][fires].astype(jnp.float32)
    return hidden @ params["out"]["w"] + params["out"]["b"]


def loss(params, batch):
    points, labels = batch
    return optax.softmax_cross_entropy_with_integer_labels(
        logits(params, points), labels
    ).mean()


smooth = lejax.local_entropy(
    lejax.importance(200), tau=0.05, beta=20.0, key=keys[2], mask=sampled
)
tx = optax.chain(smooth, optax.sgd(0.5))


@jax.jit
def update(params, state, batch):
    grads = jax.grad(loss, allow_int=True)(params, batch)
    grads["levels"] = jnp.zeros_like(params["levels"])  # its own is of float0
    updates, state = tx.update(grads, state, params, value_fn=loss, batch=batch)
    return optax.apply_updates(params, updates), state


state = tx.init(params)
for key in jax.random.split(jax.random.key(2), 300):
    rows = jax.random.randint(key, (100,), 0, 1000)
    params, state = update(params, state, (points[rows], labels[rows]))
print(f"mistakes: {jnp.mean(logits(params, points).argmax(-1) != labels):.2f}")
