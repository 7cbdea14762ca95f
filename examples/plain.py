"""A plain pytree, trained on its error rate, which has no useful gradient."""

import jax
import jax.numpy as jnp
import optax

import lejax

points = jax.random.normal(jax.random.key(0), (1000, 2))
labels = (points[:, 0] * points[:, 1] > 0).astype(jnp.int32)  # not linearly separable


def init(key):
    first, second = jax.random.split(key)
    return {
        "hidden": {"w": jax.random.normal(first, (2, 16)), "b": jnp.zeros(16)},
        "out": {"w": jax.random.normal(second, (16, 2)) / 4, "b": jnp.zeros(2)},
    }


def mistakes(params, batch):
    points, labels = batch
    hidden = jnp.tanh(points @ params["hidden"]["w"] + params["hidden"]["b"])
    logits = hidden @ params["out"]["w"] + params["out"]["b"]
    return jnp.mean(logits.argmax(-1) != labels)


tx = optax.chain(
    lejax.local_entropy(
        lejax.importance(num_samples=200), tau=0.05, beta=100.0, key=jax.random.key(1)
    ),
    optax.sgd(5.0),  # beta * tau: the paper's Algorithm 1
)


@jax.jit
def train(params, state, batches):
    def update(carry, batch):
        params, state = carry
        updates, state = tx.update(None, state, params, value_fn=mistakes, batch=batch)
        return (optax.apply_updates(params, updates), state), optax.tree.get(
            state, "info"
        )

    return jax.lax.scan(update, (params, state), batches)


params = init(jax.random.key(2))
before = mistakes(params, (points, labels))
rows = jax.random.randint(jax.random.key(3), (300, 100), 0, 1000)
(params, state), infos = train(params, tx.init(params), (points[rows], labels[rows]))
print(f"effective samples of 200: {infos.effective_sample_size.mean():.0f}")
print(f"mistakes: {before:.2f} -> {mistakes(params, (points, labels)):.2f}")
