"""An environment with the wheel alone: what came with it, and that it works."""

from importlib import metadata, resources

import jax
import jax.numpy as jnp
import optax

import lejax

needed = [r for r in metadata.requires("lejax") or [] if "extra ==" not in r]
assert [r.split(">")[0] for r in needed] == ["jax", "optax"], needed
assert resources.files("lejax").joinpath("py.typed").is_file()
assert metadata.version("lejax") == lejax.__version__
there = {found.name for found in metadata.distributions()}
assert not there & {"flax", "matplotlib", "orbax-checkpoint", "scikit-learn"}, there

smooth = lejax.local_entropy(lejax.importance(1000), tau=0.1, key=jax.random.key(0))
tx = optax.chain(smooth, optax.sgd(0.1))
x = jnp.ones(3)
updates, _ = tx.update(None, tx.init(x), x, value_fn=lambda x: jnp.sum(x**2))
assert (updates < 0).all()
print(f"The wheel of lejax {lejax.__version__} works, with {', '.join(needed)} alone.")
