"""Tar shards read by place: any pair with one read for the picture and one for the caption.

Local files (or a network file system) only; order and resume are exact, as for data in memory.
See tar_index.py for the format and streams.py for http: and pipe: URLs. P pairs of a shard.
"""

import hashlib
import os
import warnings
from functools import lru_cache
from pathlib import Path

import numpy as np
from torch import Tensor
from tqdm import tqdm

from minidalle.config import DataConfig
from minidalle.data.captioned import Captioned, Tally, Unusable
from minidalle.data.folders import file_state, split_folder, test_border, what_is_in
from minidalle.data.images import check_aspect, decode_picture, picture_size, read_caption
from minidalle.data.tar_index import read_index

OPEN_FILES = 64
KEPT_INDICES = 256  # about 100 MB for shards of 10,000 pairs


class Shards(Captioned):
    """Pairs in tar files. choose(index) -> bool (P,), which of a shard's pairs are used."""

    def __init__(self, paths: list[Path], counts: list[int], choose, key: str, **kinds):
        super().__init__(counts, **kinds)
        self.paths, self.key = paths, key
        self.first = np.concatenate([[0], np.cumsum(counts)])

        def entries(shard: int) -> np.ndarray:
            index, _ = read_index(paths[shard])
            index = index[choose(index)]
            if len(index) != counts[shard]:
                raise Unusable("tar that was changed since the start")
            return index

        # A dropped file is closed by Python once no reader holds it: safe with many threads.
        self._file = lru_cache(OPEN_FILES)(lambda shard: paths[shard].open("rb", buffering=0))
        self._entries = lru_cache(KEPT_INDICES)(entries)

    def read(self, i: int) -> Tensor:
        return decode_picture(self._bytes(i, "picture"))

    def caption(self, i: int) -> str:
        return read_caption(self._bytes(i, "caption"))

    def name(self, i: int) -> str:
        shard, place = self._find(i)
        return f"{self.paths[shard].name} pair {place}"

    def fingerprint(self) -> str:
        digest = hashlib.sha256(self.key.encode())
        for path in self.paths:
            digest.update(f"{path.name}\0{file_state(path)}\0".encode())
        return digest.hexdigest()

    def _find(self, i: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self.first, i, side="right")) - 1
        return shard, i - int(self.first[shard])

    def _bytes(self, i: int, what: str) -> bytes:
        shard, place = self._find(i)
        entry = self._entries(shard)[place]
        return read_at(self._file(shard), int(entry[what]), int(entry[f"{what}_size"]))


def read_at(file, offset: int, size: int) -> bytes:
    """Return `size` bytes from `offset` on; the file's own position stays where it is."""
    if hasattr(os, "pread"):
        raw = os.pread(file.fileno(), size, offset)
    else:  # Windows
        with open(file.name, "rb") as own:
            own.seek(offset)
            raw = own.read(size)
    if len(raw) < size:
        raise Unusable("tar that has become shorter")
    return raw


def load_shards(root: Path, split: str, data: DataConfig) -> Shards:
    """Index the shards of a folder and keep the pairs of one split that pass the filters.

    Raises ValueError, saying what was found, when no pair is usable or too many are bad.
    """
    root, whole = split_folder(root, split)
    paths, tally = sorted(root.rglob("*.tar")), Tally()
    n_good, lowest = 0, 2**32
    for path in tqdm(paths, desc="indexing shards", disable=len(paths) < 20):
        index, good = _survey(path, data, tally)
        n_good += int(good.sum())
        lowest = min([lowest, *index["hash"][good].tolist()])
    if not n_good:
        raise ValueError(f"no usable pair in {root}: {tally.line() or what_is_in(root)}")
    tally.check()
    if tally.line():
        warnings.warn(tally.line())
    border = max(test_border(data.n_test, n_good), lowest)  # at least one pair is test

    def choose(index: np.ndarray) -> np.ndarray:
        good = usable(index, data)
        return good if whole else good & ((index["hash"] <= border) == (split == "test"))

    counts = [int(choose(read_index(path)[0]).sum()) for path in paths]
    key = f"{split} {border} {data.min_caption} {data.max_aspect}"
    return Shards(paths, counts, choose, key, split=split, size=data.image_size, tally=tally)


def usable(index: np.ndarray, data: DataConfig) -> np.ndarray:
    """Return which pairs of an index are sound and pass the filters, bool (P,)."""
    good = (index["width"] > 0) & (index["characters"] >= max(1, data.min_caption))
    if data.max_aspect:
        sides = np.stack([index["width"], index["height"]]).astype(np.float64)  # (2, P)
        good &= sides.max(0) <= data.max_aspect * sides.min(0)
    return good


def _survey(path: Path, data: DataConfig, tally: Tally) -> tuple[np.ndarray, np.ndarray]:
    """Return a shard's index and which pairs are usable; count and name the others."""
    index, whole = read_index(path)
    good = usable(index, data)
    tally.total += len(index)
    if not whole:
        tally.add(path.name, Unusable("empty, broken or truncated tar"))
    for place in np.flatnonzero(~good):
        entry = index[place]
        tally.add(f"{path.name} at byte {entry['picture']}", _why_not(path, entry, data))
    return index, good


def _why_not(path: Path, entry: np.void, data: DataConfig) -> Unusable:
    """Read a pair again to find out what is wrong with it."""
    try:
        with path.open("rb", buffering=0) as file:
            if not entry["picture"]:
                raise Unusable("no picture")
            caption = read_at(file, int(entry["caption"]), int(entry["caption_size"]))
            read_caption(caption if entry["caption"] else None, data.min_caption)
            picture = read_at(file, int(entry["picture"]), int(entry["picture_size"]))
            check_aspect(picture_size(picture), data.max_aspect)
    except Unusable as why:
        return why
    return Unusable("broken picture")
