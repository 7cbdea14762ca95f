"""Handwritten digits: MNIST through tensorflow-datasets, or scikit-learn's 8×8 ones."""

from __future__ import annotations

import contextlib
import urllib.error
import urllib.request
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import numpy as np

Name = Literal["auto", "mnist", "digits"]


class Dataset(NamedTuple):
    """Images as rows of numbers in [0, 1], labels as integers.

    Attributes:
        name: the name of the data set.
        train_images: (N, pixels), float32.
        train_labels: (N,), int32.
        test_images: (M, pixels), float32.
        test_labels: (M,), int32.
    """

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray

    def widths(self, *hidden: int) -> tuple[int, ...]:
        """The widths of a dense network on these images, with these hidden layers."""
        classes = int(self.train_labels.max()) + 1
        return self.train_images.shape[1], *hidden, classes


def load(name: Name = "auto", data_dir: str | None = None) -> Dataset:
    """Loads a data set, and prints its name and how to get the other one.

    `auto` is MNIST if it is prepared already, else scikit-learn's digits. If MNIST is
    requested, it is downloaded if necessary.

    Raises:
        SystemExit: MNIST is requested, but can be neither found nor downloaded.
    """
    if name == "digits" or (name == "auto" and not _mnist_is_prepared(data_dir)):
        print(
            "Data: scikit-learn's 1,797 digits of 8×8 pixels. To get MNIST instead: "
            "pip install -e '.[mnist]', then --data mnist (downloads 11 MB once)."
        )
        return _digits()
    print("Data: MNIST, 70,000 digits of 28×28 pixels. To get the small: --data digits")
    return _mnist(data_dir)


def _digits() -> Dataset:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = map(np.asarray, load_digits(return_X_y=True))
    train, test = train_test_split(
        np.arange(len(labels)), test_size=0.25, random_state=0, stratify=labels
    )
    images, labels = (images / 16).astype(np.float32), labels.astype(np.int32)
    return Dataset("digits", images[train], labels[train], images[test], labels[test])


def _builder(data_dir: str | None) -> Any:
    """The MNIST builder; array_record files are read without TensorFlow."""
    import tensorflow_datasets as tfds

    try:
        return tfds.builder("mnist", data_dir=data_dir, file_format="array_record")
    except ValueError:  # prepared already, in another format
        return tfds.builder("mnist", data_dir=data_dir)


def _records(builder: Any, split: str) -> Iterable[Any]:
    if builder.info.file_format.value == "array_record":
        return builder.as_data_source(split)
    import tensorflow_datasets as tfds

    return tfds.as_numpy(builder.as_dataset(split=split))


def _mnist_is_prepared(data_dir: str | None) -> bool:
    try:
        return _builder(data_dir).is_prepared()
    except ImportError:
        return False


def _reach(url: str) -> None:
    """Raises at once without a connection; the download itself retries for minutes."""
    with contextlib.suppress(urllib.error.HTTPError):  # the server answers
        urllib.request.urlopen(url, timeout=20).close()


def _mnist(data_dir: str | None) -> Dataset:
    try:
        builder = _builder(data_dir)
        if not builder.is_prepared():
            print(f"Downloading it from {builder.URL}")
            _reach(builder.URL)
            builder.download_and_prepare()
    except Exception as error:  # a failed download raises errors of many kinds
        where = data_dir or "~/tensorflow_datasets"
        raise SystemExit(
            f"--data mnist: not prepared in {where}, and preparing it failed with "
            f"{type(error).__name__}: {error}\n"
            "Mend it with: pip install -e '.[mnist]' (and a way to the network); point "
            "--data-dir at a prepared copy; or use --data digits, which needs neither."
        ) from error

    def split(name: str) -> tuple[np.ndarray, np.ndarray]:
        records = ((r["image"], r["label"]) for r in _records(builder, name))
        images, labels = zip(*records, strict=True)
        pixels = np.stack(images).reshape(len(images), -1).astype(np.float32)
        return pixels / 255, np.asarray(labels, np.int32)

    return Dataset("mnist", *split("train"), *split("test"))
