"""Save and restore with orbax, typed keys included: the run continues bit for bit."""

import tempfile

import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp

import lejax


def loss(x):
    return jnp.sum((x**2 - 1) ** 2)


tx = optax.chain(
    lejax.local_entropy(lejax.sgld(50, 0.01), tau=0.1, key=jax.random.key(0)),
    optax.adam(0.1),
)


@jax.jit
def update(x, state):
    updates, state = tx.update(None, state, x, value_fn=loss)
    return optax.apply_updates(x, updates), state


x = jnp.array([2.0, -3.0])
state = tx.init(x)
for _ in range(10):
    x, state = update(x, state)

with tempfile.TemporaryDirectory() as folder, ocp.CheckpointManager(folder) as manager:
    manager.save(10, args=ocp.args.StandardSave((x, state)))
    manager.wait_until_finished()
    like = jax.eval_shape(lambda: (x, state))  # or a fresh (x, tx.init(x))
    x_again, state_again = manager.restore(10, args=ocp.args.StandardRestore(like))

for _ in range(10):
    x, state = update(x, state)
    x_again, state_again = update(x_again, state_again)
print(f"left alone: {x}, restored: {x_again}, the same: {(x == x_again).all()}")
