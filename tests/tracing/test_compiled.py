"""Nothing is compiled twice, and nothing old is ever used for something new."""

from __future__ import annotations

import dataclasses
import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lejax

KEY = jax.random.key(0)
X = jnp.linspace(-1.0, 1.0, 3)
SCALE = 1.0


@pytest.fixture
def compilations(monkeypatch):
    """How many programs of an update were handed to XLA since the last look."""
    counts = {"all": 0}

    def note(event, duration, **kwargs):
        if event == "/jax/core/compile/backend_compile_duration":
            counts["all"] += 1

    jax.monitoring.register_event_duration_secs_listener(note)

    def since():
        found, counts["all"] = counts["all"], 0
        return found

    yield since
    jax.monitoring.unregister_event_duration_listener(note)


def bowl(x):
    return jnp.sum((x - 0.5) ** 2)


def networked(params, batch):
    return jnp.mean(jax.nn.relu(batch @ params) ** 2)


SAMPLERS = {
    "importance": lejax.importance(20),
    "score_function": lejax.score_function(20),
    "pathwise": lejax.pathwise(4),
    "sgld": lejax.sgld(4, 0.01),
    "robbins_monro": lejax.robbins_monro(3, 4, 0.1),
}


def make(sampler, **options):
    heat = sampler.regularization == "heat"
    head = lejax.heat if heat else lejax.local_entropy
    return head(sampler, 0.1, key=KEY, **options)


@pytest.mark.parametrize("name", SAMPLERS)
def test_an_eager_update_compiles_nothing_again(name, compilations):
    """The same loss, another batch, other parameters; and a loss like it."""
    tx, batch, moved = make(SAMPLERS[name]), jnp.ones((5, 3)), 2 * X
    start, another = tx.init(X), 2 * batch

    def update(state, x, batch, value_fn=networked):
        return tx.update(None, state, x, value_fn=value_fn, batch=batch)

    updates, state = update(start, X, batch)
    update(state, X, batch)
    compilations()
    again, _ = update(start, X, batch)
    update(state, moved, another)
    update(state, X, batch, lambda *args: networked(*args))
    other, _ = update(start, X, another)
    assert compilations() == 0
    np.testing.assert_array_equal(updates, again)
    assert jnp.abs(other - updates).max() > 0.001


def test_settings_are_compared_and_numbers_are_arguments(compilations):
    def update(sampler, tau, beta):
        tx = lejax.local_entropy(sampler, tau, key=KEY, beta=beta)
        return tx.update(None, tx.init(X), X, value_fn=bowl)[0]

    first = update(lejax.importance(22), 0.1, 1.0)
    compilations()
    second = update(lejax.importance(22), 0.2, 3.0)
    assert compilations() == 0
    assert jnp.abs(second - first).max() > 1e-3
    update(lejax.importance(24), 0.1, 1.0)
    assert compilations() > 0


@pytest.mark.standard
@pytest.mark.parametrize("optimizer", [None, lambda: optax.adam(0.01)])
def test_a_second_run_compiles_nothing(compilations, optimizer):
    def run(target):
        return lejax.minimize(
            bowl,
            X,
            tau=0.1,
            key=KEY,
            sampler=lejax.importance(260),
            num_updates=4,
            optimizer=optimizer and optimizer(),
            target_value=target,
        )

    first = run(-1.0)
    compilations()
    second = run(-2.0)
    assert compilations() == 0
    np.testing.assert_array_equal(first.params, second.params)


def test_pure_functions_and_by_hand(compilations):
    sampler = lejax.importance(28)

    def all_of_them():
        step = lejax.step_fn(bowl, sampler, 0.1)(X, KEY)
        smoothed = lejax.value_and_grad(bowl, sampler, 0.1)
        (value, _), _ = smoothed(X, KEY)
        sampler.estimate(KEY, (), X, value_fn=bowl, tau=0.1)
        return step, value

    first = all_of_them()
    compilations()
    for a, b in zip(first, all_of_them(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert compilations() == 0


def test_ask_and_tell(compilations):
    """Weak types do not make another program of it."""
    search = lejax.ask_tell(make(lejax.importance(30)))
    x = jnp.full(2, 3.0)
    state = search.init(x)
    for turn in range(4):
        points = search.ask(state, x)
        updates, state = search.tell(points, (points**2).sum(1), state, x)
        x = optax.apply_updates(x, optax.tree.scale(-0.1, updates))
        if turn == 1:
            compilations()
    assert compilations() == 0


def displacement(value_fn, sampler=SAMPLERS["importance"]):
    tx = make(sampler, displacement=True)
    return tx.update(None, tx.init(X), X, value_fn=value_fn)[0]


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_global_that_changes(monkeypatch, name):
    def scaled(x):
        return SCALE * bowl(x)

    sampler = SAMPLERS[name]
    first = displacement(scaled, sampler)
    monkeypatch.setitem(globals(), "SCALE", 0.0)
    second = displacement(scaled, sampler)
    nothing = displacement(lambda x: 0 * bowl(x), sampler)
    assert jnp.abs(first - second).max() > 1e-3
    np.testing.assert_allclose(second, nothing, atol=1e-6)


def test_a_closure_that_changes():
    scale, array = 1.0, np.ones(3, np.float32)

    def scaled(x):
        return scale * bowl(x * array)

    first = displacement(scaled)
    scale = 2.0
    second = displacement(scaled)
    assert jnp.abs(first - second).max() > 1e-3
    array *= 0  # in place
    np.testing.assert_allclose(
        displacement(scaled), displacement(lambda x: 0.0 * x.sum())
    )


def inside_scan(fn):
    def looped(x):
        add = lambda total, _: (total + fn(x), None)  # noqa: E731
        return jax.lax.scan(add, 0.0, None, length=2)[0]

    return looped


@pytest.mark.filterwarnings("ignore:value_fn=.* was compiled 5 times")
@pytest.mark.parametrize("name", ["pathwise", "sgld"])
@pytest.mark.parametrize("inside", [lambda fn: fn, jax.jit, inside_scan])
@pytest.mark.parametrize("kind", ["number", "array", "shared", "backwards"])
def test_a_rule_of_derivatives_that_changes(name, inside, kind):
    """The same values, and another gradient: another program.

    Also where the rule holds an array that the function uses as well.
    """

    def made(slope):
        if kind == "backwards":
            steep = jax.custom_vjp(lambda x: jnp.sum(x))
            steep.defvjp(
                lambda x: (jnp.sum(x), None),
                lambda _, g: (jnp.full(3, slope * g),),
            )
        else:
            slope = slope if kind == "number" else jnp.full(3, slope)
            factor = slope if kind == "shared" else jnp.ones(3)
            steep = jax.custom_jvp(lambda x: jnp.sum(factor * x))
            steep.defjvp(lambda p, t: (steep(*p), jnp.sum(slope * t[0])))
        return inside(lambda x: steep(x))

    first, second = (displacement(made(s), SAMPLERS[name]) for s in (1.0, 3.0))
    if name == "pathwise":
        np.testing.assert_allclose(second, 3 * first, rtol=1e-5)
    assert jnp.abs(first - second).max() > 1e-3


def test_functions_inside_of_an_operation_are_compared():
    """Those of a linear solve are neither a rule nor a constant."""

    def made(factor):
        def loss(x):
            return jax.lax.custom_linear_solve(
                lambda v: factor * v, x, lambda _, b: b / factor, symmetric=True
            ).sum()

        return loss

    sampler = lejax.importance(2000)
    first, second = (displacement(made(factor), sampler) for factor in (1.0, 0.25))
    np.testing.assert_allclose(second, 4 * first, rtol=0.3)


def test_what_cannot_be_hashed_runs():
    """A plain dataclass, and its bound method; what changes in it is seen."""

    @dataclasses.dataclass
    class Model:
        centre: float

        def __call__(self, x):
            return jnp.sum((x - self.centre) ** 2)

        def loss(self, x):
            return self(x)

    model = Model(0.5)
    expected = displacement(bowl)
    np.testing.assert_allclose(displacement(model), expected, rtol=1e-6)
    np.testing.assert_allclose(displacement(model.loss), expected, rtol=1e-6)
    model.centre = -2.0
    moved = displacement(lambda x: bowl(x + 2.5))
    np.testing.assert_allclose(displacement(model), moved, rtol=1e-5)
    np.testing.assert_allclose(displacement(model.loss), moved, rtol=1e-5)


def test_under_a_trace_around_it():
    """Closing over its tracers, in jit, vmap and grad."""

    def of(centre):
        return displacement(lambda x: jnp.sum((x - centre) ** 2))

    expected = of(0.5)
    np.testing.assert_allclose(jax.jit(of)(0.5), expected, rtol=1e-5)
    mapped = jax.vmap(of)(jnp.array([0.5, 1.0]))
    np.testing.assert_allclose(mapped[0], expected, rtol=1e-5)
    assert jnp.isfinite(jax.grad(lambda centre: of(centre).sum())(0.5))


@pytest.mark.parametrize("jitted", [False, True])
@pytest.mark.parametrize("kind", ["array", "callback"])
def test_a_function_that_is_deleted_frees_its_data(jitted, kind):
    class Data:
        """What closes over it keeps it; arrays of jax know no weak references here."""

        def __init__(self):
            self.array = np.ones(3, np.float32)

    def make_loss():
        data = Data()
        array = jnp.asarray(data.array) + 1

        def loss(x):
            return jnp.sum((x - array) ** 2) + 0 * len(data.array)

        def outside(x):
            return jax.pure_callback(
                lambda x: np.float32(np.sum((x - data.array) ** 2)),
                jax.ShapeDtypeStruct((), jnp.float32),
                x,
                vmap_method="sequential",
            )

        made = loss if kind == "array" else outside
        return (jax.jit(made) if jitted else made), weakref.ref(data)

    loss, data = make_loss()
    buffers = sum(1 for array in jax.live_arrays())
    displacement(loss)
    displacement(loss)
    del loss
    gc.collect()
    if not (jitted and kind == "callback"):  # jax keeps what it traced
        assert data() is None
    assert sum(1 for array in jax.live_arrays()) <= buffers


def test_batches_of_another_shape_compile_anew(compilations):
    tx = make(lejax.importance(34))

    batches, state = [jnp.ones((rows, 3)) for rows in range(4)], tx.init(X)

    def update(rows):
        tx.update(None, state, X, value_fn=networked, batch=batches[rows])

    update(2)
    compilations()
    update(2)
    assert compilations() == 0
    update(3)
    assert compilations() > 0


def test_callbacks_are_called_as_often_as_is_asked():
    """No more than J times, with what fills up, and each time anew."""
    calls = []

    def counted(x):
        return jax.pure_callback(
            lambda x: (calls.append(1), np.float32(np.sum(x**2)))[1],
            jax.ShapeDtypeStruct((), jnp.float32),
            x,
            vmap_method="sequential",
        )

    for count in (20, 20, 21, 7):
        calls.clear()
        jax.block_until_ready(displacement(counted, lejax.importance(count)))
        assert len(calls) == count


@pytest.mark.parametrize("name", [*SAMPLERS, "importance_by_example", "gaussian"])
@pytest.mark.parametrize("jitted", [True, False])
def test_the_loss_is_traced_once(name, jitted):
    calls = []

    def counted(w, batch):
        calls.append(1)
        return jnp.mean(jnp.tanh(batch @ w) ** 2)

    if name == "gaussian":
        tx = lejax.gaussian(SAMPLERS["importance"], 0.1, key=KEY)
    else:
        tx = make(
            {**SAMPLERS, name: SAMPLERS.get(name, lejax.importance_by_example(8))}[name]
        )
    w, batch = jnp.ones((3, 1)), jnp.ones((2, 3))
    state = tx.init(w)

    def update(state):
        return tx.update(None, state, w, value_fn=counted, batch=batch)

    jax.block_until_ready((jax.jit(update) if jitted else update)(state))
    assert len(calls) == 1


def test_a_loop_that_compiles_at_every_call_is_named():
    """A Python number that changes is another program each time."""
    tx = lejax.heat(lejax.pathwise(2), 0.1, key=jax.random.key(0))
    x = jnp.ones(3)
    state = tx.init(x)

    def update(state, scale):
        def scaled_loss(x):
            return scale * x @ x

        return tx.update(None, state, x, value_fn=scaled_loss)[1]

    for k in range(3):
        state = update(state, 1.0 + k)
    for _ in range(20):
        state = update(state, jnp.float32(2.0))  # an array: one program for all
    with pytest.warns(UserWarning, match=r"value_fn=scaled_loss was compiled 5 times"):
        update(state, 10.0)
