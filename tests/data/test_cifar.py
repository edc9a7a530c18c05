"""CIFAR-10 from its published archive, unpacked, or compact; a pickle there runs nothing."""

import hashlib
import io
import pickle
import struct
import tarfile

import numpy as np
import pytest
import torch

from minidalle.config import DataConfig
from minidalle.data import cifar


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An own data folder, and no other."""
    monkeypatch.setattr("minidalle.files.places", lambda: [tmp_path])
    return tmp_path


def python2_pickle(value) -> bytes:
    """Pickle a value as Python 2 did, in protocol 2: the form in which CIFAR-10 is published."""
    if isinstance(value, dict):
        items = [python2_pickle(item) for pair in value.items() for item in pair]
        return b"}(" + b"".join(items) + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(python2_pickle(item) for item in value) + b"e"
    if isinstance(value, bytes):
        return b"T" + struct.pack("<I", len(value)) + value
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    minus_one = python2_pickle(-1)
    kind = b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR"
    kind += b"(K\x03U\x01|NNN" + minus_one + minus_one + b"K\x00tb"
    shape = b"(" + b"".join(python2_pickle(n) for n in value.shape) + b"t"
    empty = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
    return empty + b"(K\x01" + shape + kind + b"\x89" + python2_pickle(value.tobytes()) + b"tb"


def cifar_batch(n: int = 5) -> tuple[bytes, np.ndarray]:
    images = np.random.default_rng(n).integers(0, 256, (n, 3, 32, 32), dtype=np.uint8)
    batch = {b"batch_label": b"x", b"labels": list(range(n)), b"data": images.reshape(n, -1)}
    return b"\x80\x02" + python2_pickle(batch) + b".", images


@pytest.mark.filterwarnings("ignore:numpy.core:DeprecationWarning")
def test_a_cifar_batch_is_read_as_the_ordinary_reader_reads_it():
    raw, images = cifar_batch()
    theirs = pickle.loads(raw, encoding="bytes")
    ours = cifar.read_cifar_batch(raw)
    assert np.array_equal(ours[0].reshape(5, -1), theirs[b"data"])
    assert np.array_equal(ours[0], images) and ours[1].tolist() == theirs[b"labels"]


def test_cifar_is_read_from_its_published_archive(home, monkeypatch):
    file, want = io.BytesIO(), []
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for k, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
            raw, images = cifar_batch(k + 3)
            want.append(images)
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(raw)
            tar.addfile(member, io.BytesIO(raw))
    (home / "cifar10").mkdir()
    (home / cifar.ARCHIVE).write_bytes(file.getvalue())
    monkeypatch.setattr(cifar, "MD5", hashlib.md5(file.getvalue()).hexdigest())
    train = cifar.load_cifar("train", DataConfig("cifar"), seed=0)
    test = cifar.load_cifar("test", DataConfig("cifar"), seed=0)
    assert np.array_equal(train.images.numpy(), np.concatenate(want[:5]))
    assert np.array_equal(test.images.numpy(), want[5])
    assert train.attributes(2) == {"class": "bird"} and "bird" in train.caption(2)


def test_cifar_is_read_from_unpacked_files_and_from_residuals(home):
    raw, images = cifar_batch()
    unpacked = home / "cifar10" / "cifar-10-batches-py"
    unpacked.mkdir(parents=True)
    (unpacked / "test_batch").write_bytes(raw)
    test = cifar.load_cifar("test", DataConfig("cifar", image_size=16), seed=0)
    want = torch.nn.functional.avg_pool2d(torch.from_numpy(images).double(), 2)
    assert (test.images.double() - want).abs().max() <= 0.5 + 1e-4
    y = images.copy()
    y[:, 0] -= y[:, 1]
    y[:, 2] -= y[:, 1]
    for axis in (3, 2):
        y = np.diff(y, axis=axis, prepend=np.zeros_like(np.take(y, [0], axis)))
    np.savez(home / "cifar10" / "test_batch.npz", residuals=y, labels=np.arange(5, dtype=np.uint8))
    test = cifar.load_cifar("test", DataConfig("cifar"), seed=0)
    assert np.array_equal(test.images.numpy(), images)


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("broken", ["flipped", "cut", "empty"])
def test_a_damaged_batch_of_residuals_is_refused_whole(tmp_path, broken):
    path = tmp_path / "data_batch_1.npz"
    residuals = np.random.default_rng(0).integers(0, 256, (4, 3, 32, 32), dtype=np.uint8)
    np.savez(path, residuals=residuals, labels=np.zeros(4, np.uint8))
    content = bytearray(path.read_bytes())
    content[3000] ^= 1  # one bit in the middle of the pixels
    path.write_bytes({"flipped": content, "cut": content[:5000], "empty": b""}[broken])
    with pytest.raises(ValueError, match=r"data_batch_1\.npz is damaged or no CIFAR batch"):
        cifar.read_compact(path)


def test_a_hostile_pickle_in_place_of_cifar_runs_nothing(tmp_path):
    raw = pickle.dumps({b"data": Hostile(tmp_path / "harm"), b"labels": [0]}, protocol=2)
    with pytest.raises(ValueError, match="not a CIFAR-10 python batch"):
        cifar.read_cifar_batch(raw)
    assert not (tmp_path / "harm").exists()
    pickle.loads(raw)[b"data"].close()  # the file does run in an ordinary reader
    assert (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    "raw", [b"", b"text", pickle.dumps({}), pickle.dumps([1]), cifar_batch()[0][:99]]
)
def test_what_is_no_cifar_batch_is_refused(raw):
    with pytest.raises(ValueError, match="not a CIFAR-10 python batch"):
        cifar.read_cifar_batch(raw)
