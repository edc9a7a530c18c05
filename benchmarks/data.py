"""What does reading cost, and is the order exact? Ours beside tarfile and the `webdataset` library.

    python benchmarks/data.py [pairs]

Writes PNG shards into a temporary folder and prints CPU seconds per 1,000 pairs, decoding included.
"""

import io
import itertools
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from minidalle.config import DataConfig
from minidalle.data.images import decode_image
from minidalle.data.shards import load_shards
from minidalle.data.shuffle import Shuffle


def write_shards(root: Path, n_shards: int, each: int) -> list[Path]:
    rng = np.random.default_rng(0)
    for shard in range(n_shards):
        with tarfile.open(root / f"{shard:05d}.tar", "w") as tar:
            for i in range(each):
                picture = io.BytesIO()
                Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(
                    picture, "png"
                )
                for ending, body in (
                    ("png", picture.getvalue()),
                    ("txt", b"a caption"),
                    ("json", b"{}"),
                ):
                    member = tarfile.TarInfo(f"{shard:05d}{i:04d}.{ending}")
                    member.size = len(body)
                    tar.addfile(member, io.BytesIO(body))
    return sorted(root.glob("*.tar"))


def cpu(read, n: int) -> float:
    """Return CPU seconds per 1,000 pairs of an iterator's first n."""
    start = time.process_time()
    assert sum(1 for _ in itertools.islice(read, n)) == n
    return (time.process_time() - start) / n * 1000


def by_tarfile(paths):
    for path in paths:
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".png"):
                    yield decode_image(tar.extractfile(member).read())


def by_webdataset(paths):
    import webdataset

    for sample in webdataset.WebDataset([str(p) for p in paths], shardshuffle=False):
        yield decode_image(sample["png"]), sample["txt"].decode()


def main(n: int = 2000) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        paths = write_shards(root, 10, n // 10)
        data = DataConfig("folder", image_size=64, n_test=1)
        start = time.process_time()
        dataset = load_shards(root, "train", data)
        print(f"index made: {(time.process_time() - start) / n * 1000:.3f} CPU s per 1,000 pairs")
        start = time.process_time()
        dataset = load_shards(root, "train", data)
        print(f"index read: {(time.process_time() - start) / n * 1000:.4f}")
        dataset._kept = None  # read each picture, as a large set would be
        rows = Shuffle(dataset.counts, seed=0).rows(0, len(dataset))
        readers = {
            "ours, shuffled": lambda: (dataset.pair(int(i)) for i in rows),
            "tarfile, in order": lambda: by_tarfile(paths),
            "webdataset, in order": lambda: by_webdataset(paths),
        }
        times = {name: [] for name in readers}
        for _ in range(3):  # interleaved, so that a busy machine hits all alike
            for name, read in readers.items():
                times[name].append(cpu(read(), len(dataset)))
        for name, values in times.items():
            print(f"{name:22s} {min(values):.3f} CPU s per 1,000 pairs")
    order = Shuffle([10_000] * 25_000, seed=0)
    start = time.perf_counter()
    first = order.batch(200_000, 1024)
    print(f"250 M pairs, jump to update 200,000: {time.perf_counter() - start:.3f} s", end="; ")
    start = time.perf_counter()
    for step in range(200_001, 200_101):
        order.batch(step, 1024)
    print(f"then {(time.perf_counter() - start) * 10:.3f} ms a batch of 1,024")
    same = np.array_equal(first, Shuffle([10_000] * 25_000, seed=0).batch(200_000, 1024))
    print(f"a new process finds the same batch: {same}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
