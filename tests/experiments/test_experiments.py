"""The main job end to end on small settings, and the real data path."""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lejax
from experiments.applications import forward_only
from experiments.common import data, methods, models, training
from experiments.common.options import Options

pytestmark = pytest.mark.standard


@pytest.fixture
def nothing_prepared(monkeypatch):
    """No MNIST on this machine, whatever is."""
    monkeypatch.setattr(data, "_mnist_is_prepared", lambda data_dir: False)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:warm_start=True")
def test_every_method_is_what_the_paper_says():
    """One update of each is that of a chain written out here, with the same key."""
    key, tau = jax.random.key(5), 0.03
    steps = lambda j: 1.0 / (1001 + j)  # noqa: E731
    entropy = functools.partial(lejax.local_entropy, tau=tau, key=key)
    plain = {"antithetic": False}
    law = {"sample_complement": True}
    warm = {"warm_start": True}
    decay = methods.robbins_monro_step_size

    def moves(**options):
        return lejax.heat(lejax.robbins_monro(4, 4, decay, **options), tau, key=key)

    published = lejax.importance(40, **plain, **law)
    heads = {
        ("SGD", "as written"): methods.backpropagation(),
        ("IS", "as written"): entropy(lejax.importance(40, **plain, **law)),
        ("SGLD", "as written"): entropy(lejax.sgld(40, steps, **warm, **law)),
        ("HR", "as written"): moves(**plain),
        ("IS", "as published"): lejax.local_entropy(published, tau**2, key=key),
        ("SGLD", "as published"): entropy(
            lejax.sgld(40, steps, temperature=steps, **warm, **law)
        ),
        ("HR", "as published"): moves(**plain, smoothing=tau**2),
        ("IS", "lejax"): entropy(lejax.importance(40)),
        ("SGLD", "lejax"): entropy(lejax.sgld(40, steps, temperature=steps, **warm)),
        ("HR", "lejax"): moves(),
    }
    params = jnp.array([1.0, -2.0])

    def first_update(tx):
        return tx.update(
            jnp.zeros(2),
            tx.init(params),
            params,
            value_fn=lambda x, batch: jnp.sum(jnp.sin(batch @ x)),
            batch=jnp.array([[1.0, 3.0]]),
        )[0]

    seen = []
    for (method, column), head in heads.items():
        run = methods.Run(method, column, samples=40, moves=4)
        found = first_update(methods.optimizer(run, tau, None, key))
        rate = tau**2 if (method, column) == ("IS", "as published") else tau
        expected = first_update(optax.chain(head, optax.sgd(rate)))
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        seen.append(tuple(np.asarray(found)))
    assert len(set(seen)) == len(heads)


def test_options_that_cannot_be_run():
    with pytest.raises(SystemExit, match="multiple of 5, got 7"):
        Options(updates=7)
    with pytest.raises(SystemExit, match="--seeds must be at least 1, got 0"):
        Options(seeds=0)
    with pytest.raises(SystemExit, match="--checkpoint-seconds must be at least 0"):
        Options(checkpoint_seconds=-1)
    with pytest.raises(SystemExit, match=r"--processes None.*give all three, or none"):
        Options(coordinator="here:1234", rank=0)
    with pytest.raises(SystemExit, match=r"--rank must be from 0 to 1.*, got 2"):
        Options(coordinator="here:1234", processes=2, rank=2)
    with pytest.raises(SystemExit, match="--workers must be at least 1, got 0"):
        Options(workers=0)


def test_an_environment_that_is_no_number():
    environment = os.environ | {"JAX_NUM_PROCESSES": "abc"}
    command = [sys.executable, "-c", "import experiments.common.options"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stderr == "JAX_NUM_PROCESSES must be a whole number, got 'abc'.\n"


def test_the_settings_are_the_paper_s():
    run = methods.Run("SGLD")
    assert (run.updates, run.batch_size, run.tau) == (500, 20, (0.01,))
    assert (run.samples, run.moves, run.hidden) == (1000, 30, 200)
    np.testing.assert_allclose(methods.langevin_step_size(0), 1 / 1001)
    np.testing.assert_allclose(methods.langevin_step_size(999), 1 / 2000)
    np.testing.assert_allclose(methods.langevin_step_size(0, 2000), 1 / 2001)
    np.testing.assert_allclose(methods.robbins_monro_step_size(0), 0.1)
    np.testing.assert_allclose(
        methods.robbins_monro_step_size(29), 0.1 * 30**-0.7, rtol=1e-6
    )


@pytest.mark.parametrize(
    ("widths", "size"), [((784, 10), 7_850), ((784, 200, 10), 159_010)]
)
def test_the_networks_are_the_paper_s(widths, size):
    network = models.dense_classifier(widths, seed=0)
    assert sum(leaf.size for leaf in jax.tree.leaves(network.params)) == size
    batch = (jnp.zeros((3, 784)), jnp.array([0, 1, 2]))
    np.testing.assert_allclose(network.loss(network.params, batch), np.log(10))
    spread = 1e-3 * jnp.ones((3, 784)).at[0].set(jnp.arange(784.0))
    assert network.loss(network.params, (spread, batch[1])) != np.log(10)
    assert 0 <= network.accuracy(network.params, batch) <= 1
    other = models.dense_classifier(widths, seed=1)
    pairs = zip(
        jax.tree.leaves(network.params), jax.tree.leaves(other.params), strict=True
    )
    assert any((a != b).any() for a, b in pairs)


def test_batches_are_shuffled_epochs():
    indices = training.batch_indices(seed=0, size=10, updates=6, batch_size=4)
    assert indices.shape == (6, 4)
    first_epoch = indices.ravel()[:10]
    assert sorted(first_epoch) == list(range(10))
    assert list(first_epoch) != list(range(10))


def test_digits(nothing_prepared, capsys):
    digits = data.load("auto")
    printed = capsys.readouterr().out
    assert "scikit-learn" in printed
    assert "--data mnist" in printed
    assert digits.name == "digits"
    assert digits.train_images.shape[1] == 64
    assert len(digits.train_labels) + len(digits.test_labels) == 1797
    assert 0 <= digits.train_images.min() < digits.train_images.max() <= 1


@pytest.mark.slow
def test_forward_only(nothing_prepared, capsys, tmp_path):
    """Without a gradient it learns, with back-propagation beside it."""
    forward_only.main(
        forward_only.Config(
            only=("short", "four layers"),
            shorten=100,
            evaluations=2,
            seeds=(0,),
            decay=0.05,
            output=tmp_path,
        )
    )
    kept = json.loads((tmp_path / "forward_only.json").read_text())["curves"]
    assert [len(both) for both in kept.values()] == [3, 2]
    for both in kept.values():
        for (curve,) in both.values():
            assert curve["updates"][0] == 0 < curve["updates"][-1]
            assert curve["seconds"] == sorted(curve["seconds"])
    for curves in next(iter(kept.values())).values():
        assert curves[0]["accuracy"][-1] > 0.7 > 0.3 > curves[0]["accuracy"][0]
    assert (tmp_path / "forward_only.png").exists()
    printed = capsys.readouterr().out
    assert "| short: one hidden layer, relu, 80 updates" in printed
    assert "rate 0.003, decay 0.05 | forward only |" in printed


def test_forward_only_has_a_run_once(nothing_prepared):
    """Of other settings it takes the place of its namesake."""
    curves = {"tanh: 1": 1, "short: 1": 2, "long: 1": 3}
    found = forward_only.put(curves, "short: 2", 4)
    assert list(found.items()) == [("short: 2", 4), ("tanh: 1", 1), ("long: 1", 3)]
    found = forward_only.put(curves, "four layers: 1", 4)
    assert list(found.values()) == [2, 1, 3, 4]


@contextlib.contextmanager
def serve_files():
    """The address on the loopback at which the original MNIST files are served."""
    files = os.environ.get("LEJAX_MNIST_FILES")
    if files is None:
        pytest.skip("LEJAX_MNIST_FILES does not name a folder of the MNIST files")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = functools.partial(Handler, directory=files)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the warnings of tensorflow-datasets
class TestMnist:
    """The real tensorflow-datasets path, on the real files from the loopback."""

    @pytest.fixture(scope="class")
    def data_dir(self, tmp_path_factory):
        """MNIST, downloaded from the loopback and prepared."""
        mnist = pytest.importorskip("tensorflow_datasets").image_classification.mnist
        folder = str(tmp_path_factory.mktemp("mnist"))
        with serve_files() as url, pytest.MonkeyPatch.context() as patch:
            patch.setattr(mnist.MNIST, "URL", url)
            return folder, data.load("mnist", folder)

    def test_shapes_and_values(self, data_dir):
        _, mnist = data_dir
        assert mnist.train_images.shape == (60_000, 784)
        assert mnist.test_images.shape == (10_000, 784)
        assert mnist.train_images.dtype == np.float32
        assert (mnist.train_images.min(), mnist.train_images.max()) == (0, 1)
        # The counts of the labels are known.
        assert np.bincount(mnist.train_labels).tolist() == [
            5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949,
        ]  # fmt: skip
        assert abs(mnist.train_images.mean() - 0.1307) < 1e-4

    def test_prepared_mnist_is_the_default(self, data_dir, capsys):
        folder, mnist = data_dir
        found = data.load("auto", folder)
        assert found.name == "mnist"
        np.testing.assert_array_equal(found.test_labels, mnist.test_labels)
        printed = capsys.readouterr().out
        assert "MNIST" in printed.splitlines()[0]
        assert "--data digits" in printed.splitlines()[0]

    def test_mnist_prepared_by_others_is_read(self, data_dir, tmp_path, monkeypatch):
        """As `tfds.load` leaves it: in TFRecord files."""
        tfds = pytest.importorskip("tensorflow_datasets")
        _, mnist = data_dir
        with serve_files() as url:
            module = tfds.image_classification.mnist
            monkeypatch.setattr(module.MNIST, "URL", url)
            tfds.builder("mnist", data_dir=str(tmp_path)).download_and_prepare()
        other = data.load("auto", str(tmp_path))
        assert other.name == "mnist"
        assert other.train_images.shape == mnist.train_images.shape
        np.testing.assert_array_equal(
            np.sort(other.test_labels), np.sort(mnist.test_labels)
        )

    def test_mnist_that_cannot_be_had_is_an_error(self, monkeypatch, tmp_path):
        mnist = pytest.importorskip("tensorflow_datasets").image_classification.mnist
        monkeypatch.setattr(mnist.MNIST, "URL", "http://127.0.0.1:9/")
        start = time.perf_counter()
        with pytest.raises(SystemExit) as caught:
            data.load("mnist", str(tmp_path))
        assert time.perf_counter() - start < 60  # not after minutes of retries
        message = str(caught.value)
        assert "not prepared" in message
        assert "pip install -e '.[mnist]'" in message
        assert "--data digits" in message
        assert not list(Path(tmp_path).glob("mnist/3*"))
