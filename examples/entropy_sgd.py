"""Entropy-SGD on XOR, with twenty minibatches in each update."""

import jax
import jax.numpy as jnp
import optax

import lejax

points = jax.random.normal(jax.random.key(0), (1000, 2))
labels = (points[:, 0] * points[:, 1] > 0).astype(jnp.int32)


def logits(params, points):
    hidden = jnp.tanh(points @ params["w"] + params["b"])
    return hidden @ params["v"]


def loss(params, batch):
    points, labels = batch
    return optax.softmax_cross_entropy_with_integer_labels(
        logits(params, points), labels
    ).mean()


def mistakes(params):
    return jnp.mean(logits(params, points).argmax(-1) != labels)


gamma_0, gamma_1 = 1e-2, 1e-2  # scoping: γ grows, τ = 1/γ falls
tx = lejax.entropy_sgd(0.5, lejax.scoping(1 / gamma_0, gamma_1), key=jax.random.key(1))


@jax.jit
def train(params, state, batches):
    def update(carry, batch):
        params, state = carry
        updates, state = tx.update(None, state, params, value_fn=loss, batch=batch)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(update, (params, state), batches)[0]


keys = jax.random.split(jax.random.key(2), 3)
params = {
    "w": jax.random.normal(keys[0], (2, 16)),
    "b": jnp.zeros(16),
    "v": jax.random.normal(keys[1], (16, 2)) / 4,
}
print(f"mistakes before: {mistakes(params):.2f}")
rows = jax.random.randint(keys[2], (50, 20, 32), 0, 1000)  # updates, batches, examples
params, state = train(params, tx.init(params), (points[rows], labels[rows]))
print(f"mistakes after: {mistakes(params):.2f}")
