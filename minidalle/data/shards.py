"""Tar shards read by place: any pair with one read for the image and one for the caption.

A shard holds KEY.jpg (or another image) and KEY.txt, as img2dataset writes them: one after the
other, the key without a dot. An index of where
their bytes lie is made once and kept beside it as SHARD.tar.idx.npy. Local files (or a network file
system) only; order and resume are exact, as for data in memory. P pairs of a shard.
Source: the format is that of Aizman et al. 2020, arXiv:2001.01858; the index is ours.
"""

import contextlib
import hashlib
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from itertools import groupby
from pathlib import Path

import numpy as np
from torch import Tensor
from tqdm import tqdm

from minidalle.config import DataConfig
from minidalle.data.captioned import Captioned, Tally, Unusable
from minidalle.data.folders import files_digest, name_hash, split_folder, test_border, what_is_in
from minidalle.data.images import ENDINGS, check_aspect, decode_image, image_size, read_caption
from minidalle.files import load_array, save_array

OPEN_FILES = 64
KEPT_INDICES = 256  # about 100 MB for shards of 10,000 pairs
ENTRY = np.dtype(
    [
        ("image", "<i8"),  # offset of its bytes in the tar
        ("image_size", "<i4"),  # bytes; 0 where there is none
        ("caption", "<i8"),
        ("caption_size", "<i4"),
        ("width", "<u2"),  # pixels; 0 where the header cannot be read
        ("height", "<u2"),
        ("characters", "<u2"),  # of the caption; 0 where it is unusable
        ("hash", "<u4"),  # of the key: decides the split
    ]
)
BLOCK = 512  # bytes of a header in a tar
NO_IMAGE = "no image called KEY.jpg or so, KEY without a dot"
HEAD = 65_536  # bytes of an image that are read for its size at first


class Shards(Captioned):
    """Pairs in tar files. choose(index) -> bool (P,), which of a shard's pairs are used."""

    def __init__(self, root: Path, paths: list[Path], choose: Callable, key: str, **kinds):
        super().__init__([int(choose(read_index(path)[0]).sum()) for path in paths], **kinds)
        self.root, self.paths, self.key = root, paths, key
        self.first = np.concatenate([[0], np.cumsum(self.counts)])

        def entries(shard: int) -> np.ndarray:
            index, _ = read_index(paths[shard])
            index = index[choose(index)]
            if len(index) != self.counts[shard]:
                raise Unusable("tar that was changed since the start")
            return index

        # A dropped file is closed by Python once no reader holds it: safe with many threads.
        self._file = lru_cache(OPEN_FILES)(lambda shard: paths[shard].open("rb", buffering=0))
        self._entries = lru_cache(KEPT_INDICES)(entries)

    def read(self, i: int) -> Tensor:
        return decode_image(self._bytes(i, "image"))

    def caption(self, i: int) -> str:
        return read_caption(self._bytes(i, "caption"))

    def name(self, i: int) -> str:
        shard, place = self._find(i)
        return f"{self.paths[shard].name} pair {place}"

    def fingerprint(self) -> str:
        files = [path.relative_to(self.root).as_posix() for path in self.paths]
        return hashlib.sha256(f"{self.key} {files_digest(self.root, files)}".encode()).hexdigest()

    def _find(self, i: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self.first, i, side="right")) - 1
        return shard, i - int(self.first[shard])

    def _bytes(self, i: int, what: str) -> bytes:
        shard, place = self._find(i)
        return _read_at(self._file(shard), self._entries(shard)[place], what)


def _read_at(file, entry: np.void, what: str) -> bytes:
    """Return the bytes of an entry's image or caption; the file's own position is not moved."""
    offset, size = int(entry[what]), int(entry[f"{what}_size"])
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
    paths, tally = sorted(path for path in root.rglob("*.tar") if path.is_file()), Tally()

    def usable(index: np.ndarray) -> np.ndarray:
        good = (index["width"] > 0) & (index["characters"] >= max(1, data.min_caption))
        if data.max_aspect:
            sides = np.stack([index["width"], index["height"]]).astype(np.float64)  # (2, P)
            good &= sides.max(0) <= data.max_aspect * sides.min(0)
        return good  # (P,)

    # Index every shard, counting and naming what cannot be used.
    n_good, lowest = 0, 2**32
    for path in tqdm(paths, desc="indexing shards", disable=len(paths) < 20):
        index, complete = read_index(path)
        good = usable(index)
        tally.total += len(index)
        if not complete:
            tally.add(path.name, Unusable("empty, broken or truncated tar"))
        for entry in index[~good]:
            byte = max(entry["image"], entry["caption"])
            tally.add(f"{path.name} at byte {byte}", _why_not(path, entry, data))
        n_good += int(good.sum())
        lowest = min([lowest, *index["hash"][good].tolist()])
    tally.close(n_good, root, lambda: what_is_in(root))
    # Split by the hashes of the keys, as folders are.
    border = test_border(data.n_test, n_good, lowest)

    def choose(index: np.ndarray) -> np.ndarray:
        mine = whole | ((index["hash"] <= border) == (split == "test"))
        return usable(index) & mine

    key = f"{split} {border} {data.min_caption} {data.max_aspect}"
    return Shards(root, paths, choose, key, split=split, size=data.image_size, tally=tally)


def _why_not(path: Path, entry: np.void, data: DataConfig) -> Unusable:
    """Read a pair again to find out what is wrong with it."""
    try:
        with path.open("rb", buffering=0) as file:
            if not entry["image"]:
                raise Unusable(NO_IMAGE)
            raw = _read_at(file, entry, "caption") if entry["caption"] else None
            read_caption(raw, data.min_caption)
            check_aspect(image_size(_read_at(file, entry, "image")), data.max_aspect)
    except Unusable as why:
        return why
    return Unusable("broken image")


# ---------------------------------------------------------------- the index


def read_index(path: Path) -> tuple[np.ndarray, bool]:
    """Return the index of a shard, (P,) ENTRY, and whether the tar is whole.

    Taken from beside the tar if it belongs to the tar as it is now; else made and put there. Where
    nothing can be written it is made in memory.
    """
    beside = path.with_name(f"{path.name}.idx.npy")
    # Row 0 is no pair: it says of which state of the tar this is the index, and if it is whole.
    head, state = np.zeros(1, ENTRY), path.stat()
    head["image"], head["caption"] = state.st_size, state.st_mtime_ns
    table, names = load_array(beside, ENTRY), ["image", "caption"]
    if table is not None and len(table) and table[0][names] == head[0][names]:
        return table[1:], bool(table["width"][0])
    entries, whole = make_index(path)
    head["width"] = whole
    with contextlib.suppress(OSError):  # a read-only or full folder costs the index, not the run
        save_array(beside, np.concatenate([head, entries]))
    return entries, whole


def make_index(path: Path) -> tuple[np.ndarray, bool]:
    """Walk through a tar and return its index and whether it is whole."""
    entries, size = [np.zeros(0, ENTRY)], path.stat().st_size
    try:
        with tarfile.open(path, "r:") as tar, path.open("rb") as file:

            def members() -> Iterator[tuple[str, tarfile.TarInfo]]:
                for member in tar:
                    tar.members = []  # tarfile would keep them all
                    if member.isfile() and member.offset_data + member.size <= size:
                        yield member.name, member

            for key, pair in group_pairs(members()):
                entries.append(_entry(key, pair, file))
            file.seek(tar.offset)  # two blocks of zeros must end a tar; without them it was cut
            whole = file.read(BLOCK) == bytes(BLOCK)
    except (tarfile.TarError, OSError, EOFError):
        whole = False  # what came before the break still counts
    return np.concatenate(entries), whole


def group_pairs(files: Iterable[tuple[str, object]]) -> Iterator[tuple[str, dict[str, object]]]:
    """Group the files of a tar, (name, content), into (key, {"image": …, "caption": …}).

    A key that comes again is another pair, so that nobody's image meets another's caption. Other
    files are passed over; but where a key has images or captions by longer endings alone, such as
    my.photo.jpg, each is an empty pair, to be counted.
    """

    def key_of(name: str) -> str:
        folder, _, base = name.rpartition("/")
        return f"{folder}/{base.partition('.')[0]}"

    for key, group in groupby(files, key=lambda file: key_of(file[0])):
        pair, dotted = {}, {}
        for name, content in group if not key.endswith("/") else ():  # hidden files
            ending = "." + name.rpartition("/")[2].lower().partition(".")[2]
            if ending in (*ENDINGS, ".txt"):
                what = "caption" if ending == ".txt" else "image"
                if what in pair:
                    yield key, pair
                    pair = {}
                pair[what] = content
            elif ending.endswith((*ENDINGS, ".txt")):
                dotted[name.rpartition(".")[0]] = {}
        yield from {key: pair}.items() if pair else dotted.items()


def _entry(key: str, pair: dict[str, tarfile.TarInfo], file) -> np.ndarray:
    """Return the index entry of a pair, (1,) ENTRY."""
    entry = np.zeros(1, ENTRY)
    entry["hash"] = name_hash(key)

    def first(member: tarfile.TarInfo, length: int) -> bytes:
        file.seek(member.offset_data)
        return file.read(length)

    for what, member in pair.items():
        entry[what], entry[f"{what}_size"] = member.offset_data, member.size
        # Note what the filters ask for: the caption's length, the image's sides.
        with contextlib.suppress(Unusable):
            if what == "caption":
                n = len(read_caption(first(member, member.size)))
                entry["characters"] = min(n, 2**16 - 1)
                continue
            try:
                sides = image_size(first(member, min(member.size, HEAD)))
            except Unusable:  # some formats keep their size at the end
                sides = image_size(first(member, member.size))
            entry["width"], entry["height"] = (min(side, 2**16 - 1) for side in sides)
    return entry
