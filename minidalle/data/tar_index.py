"""Where in a tar shard does each pair lie? An index of byte offsets, made once and kept beside it.

A shard holds KEY.jpg (or another image) and KEY.txt, as img2dataset writes them; the index,
SHARD.tar.idx.npy, says where their bytes lie and what the filters need to know. P pairs.
Source: the format is that of Aizman et al. 2020, arXiv:2001.01858; the index is ours.
"""

import contextlib
import tarfile
from pathlib import Path

import numpy as np

from minidalle.data.captioned import Unusable
from minidalle.data.folders import name_hash
from minidalle.data.images import ENDINGS, picture_size, read_caption
from minidalle.files import load_array, save_array

ENTRY = np.dtype(
    [
        ("picture", "<i8"),  # offset of its bytes in the tar
        ("picture_size", "<i4"),  # bytes; 0 where there is none
        ("caption", "<i8"),
        ("caption_size", "<i4"),
        ("width", "<u2"),  # pixels; 0 where the header cannot be read
        ("height", "<u2"),
        ("characters", "<u2"),  # of the caption; 0 where it is unusable
        ("hash", "<u4"),  # of the key: decides the split
    ]
)
BLOCK = 512  # bytes of a header in a tar
HEAD = 65_536  # bytes of a picture that are read for its size at first


def read_index(path: Path) -> tuple[np.ndarray, bool]:
    """Return the index of a shard, (P,) ENTRY, and whether the tar is whole.

    Taken from beside the tar if it belongs to the tar as it is now; else made and put there. Where
    nothing can be written it is made in memory.
    """
    beside = path.with_name(f"{path.name}.idx.npy")
    state = path.stat()
    # Row 0 is no pair: it says of which state of the tar this is the index, and if it is whole.
    head = np.zeros(1, ENTRY)
    head["picture"], head["caption"] = state.st_size, state.st_mtime_ns
    table = load_array(beside, ENTRY)
    state_names = ["picture", "caption"]
    if table is not None and len(table) and table[0][state_names] == head[0][state_names]:
        return table[1:], bool(table["width"][0])
    entries, whole = make_index(path)
    head["width"] = whole
    with contextlib.suppress(OSError):  # a read-only or full folder costs the index, not the run
        save_array(beside, np.concatenate([head, entries]))
    return entries, whole


def make_index(path: Path) -> tuple[np.ndarray, bool]:
    """Walk through a tar and return its index and whether it is whole."""
    pairs: dict[str, np.ndarray] = {}  # key -> (1,) ENTRY
    size = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as tar, path.open("rb") as file:
            for member in tar:
                tar.members = []  # tarfile would keep them all
                if member.isfile() and member.offset_data + member.size <= size:
                    _note(pairs, file, member)
            file.seek(tar.offset)  # two blocks of zeros must end a tar; without them it was cut
            whole = file.read(BLOCK) == bytes(BLOCK)
    except (tarfile.TarError, OSError, EOFError):
        whole = False  # what came before the break still counts
    entries = np.concatenate([np.zeros(0, ENTRY), *pairs.values()])
    return entries, whole


def _note(pairs: dict[str, np.ndarray], file, member: tarfile.TarInfo) -> None:
    """Enter one file of the tar into the index entry of its pair."""
    folder, _, base = member.name.rpartition("/")
    key, _, ending = base.partition(".")
    ending = f".{ending.lower()}"
    if ending not in (*ENDINGS, ".txt") or not key:
        return
    key = f"{folder}/{key}"
    if key not in pairs:
        pairs[key] = np.zeros(1, ENTRY)
        pairs[key]["hash"] = name_hash(key)
    entry, place = pairs[key], (member.offset_data, member.size)
    if ending == ".txt":
        entry["caption"], entry["caption_size"] = place
        entry["characters"] = _characters(_bytes(file, *place))
    else:
        entry["picture"], entry["picture_size"] = place
        entry["width"], entry["height"] = _size(file, *place)


def _characters(raw: bytes) -> int:
    try:
        return min(len(read_caption(raw)), 2**16 - 1)
    except Unusable:
        return 0


def _size(file, offset: int, size: int) -> tuple[int, int]:
    for length in (min(size, HEAD), size):  # some formats keep their size at the end
        try:
            width, height = picture_size(_bytes(file, offset, length))
            return min(width, 2**16 - 1), min(height, 2**16 - 1)
        except Unusable:
            continue
    return 0, 0


def _bytes(file, offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(size)
