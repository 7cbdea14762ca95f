"""A Flax CNN with batch norm and dropout, as a first-time user trained it."""

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from sklearn.datasets import load_digits

import lejax

images, labels = load_digits(return_X_y=True)
images, labels = (
    jnp.asarray(images.reshape(-1, 8, 8, 1) / 16, jnp.float32),
    jnp.asarray(labels),
)


class CNN(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 16, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        self.drop = nnx.Dropout(0.2, rngs=rngs)
        self.head = nnx.Linear(4 * 4 * 16, 10, rngs=rngs)

    def __call__(self, x):
        x = nnx.avg_pool(nnx.relu(self.norm(self.conv(x))), (2, 2), (2, 2))
        return self.head(self.drop(x.reshape(len(x), -1)))


graph, params, rest = nnx.split(CNN(nnx.Rngs(0)), nnx.Param, ...)


def loss(params, batch):
    model = nnx.merge(graph, params, rest, copy=True)
    return optax.softmax_cross_entropy_with_integer_labels(
        model(batch[0]), batch[1]
    ).mean()


tx = optax.chain(
    lejax.local_entropy(
        lejax.sgld(10, 1e-5, temperature=1e-3), 1e-3, key=jax.random.key(0)
    ),
    optax.sgd(0.3, 0.9),
)
state = tx.init(params)


@jax.jit
def update(params, state, batch):
    updates, state = tx.update(None, state, params, value_fn=loss, batch=batch)
    return optax.apply_updates(params, updates), state


for step in range(60):
    i = jax.random.randint(jax.random.key(step), (64,), 0, 1500)
    params, state = update(params, state, (images[i], labels[i]))
    if step % 20 == 0:
        print(
            step, loss(params, (images[:500], labels[:500])), state[0].info
        )  # what is there to watch?
