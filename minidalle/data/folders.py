"""Your own images: a folder of them with captions beside them or in one table.

Looked for in this order: captions.tsv or captions.csv (file, caption), tar shards (see shards.py),
image files with a .txt of the same name, one caption a line. Folders `train` and `test` inside are
taken as the split; otherwise about n_test images, a tenth at most, are held out by their names.
"""

import csv
import hashlib
import io
import os
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from torch import Tensor
from tqdm import tqdm

from minidalle.config import DataConfig
from minidalle.data.captioned import Captioned, Tally, Unusable
from minidalle.data.images import ENDINGS, check_aspect, decode_image, image_size, read_caption

TABLES = {"captions.tsv": "excel-tab", "captions.csv": "excel"}
FILE_COLUMNS = ("file", "filename", "file_name", "image", "path")


class Folder(Captioned):
    """Images in files of their own, decoded when they are asked for."""

    def __init__(self, root: Path, files: list[str], captions: list[str], **kinds):
        super().__init__([len(files)], **kinds)
        self.root, self.files, self.captions = root, files, captions

    def read(self, i: int) -> Tensor:
        return decode_image(self.root / self.files[i])

    def caption(self, i: int) -> str:
        return self.captions[i]

    def name(self, i: int) -> str:
        return self.files[i]

    def fingerprint(self) -> str:
        return files_digest(self.root, self.files)


def load_folder(root: Path, split: str, data: DataConfig) -> Folder:
    """Read all captions, and the headers of all images, of one split.

    Raises ValueError, saying what was found, when no pair is usable or too many are bad.
    """
    root, whole = split_folder(root, split)
    pairs = list(find_pairs(root))
    tally, good = Tally(len(pairs)), []
    for file, raw in tqdm(pairs, desc="looking at images", disable=len(pairs) < 2000):
        try:
            if isinstance(raw, Unusable):
                raise raw
            caption = read_caption(raw, data.min_caption)
            check_aspect(image_size(root / file), data.max_aspect)
            good.append((file, caption))
        except Unusable as why:
            tally.add(file, why)
    tally.close(len(good), root, lambda: what_is_in(root))
    if not whole:
        chosen = in_split(np.array([name_hash(file) for file, _ in good]), split, data.n_test)
        good = [pair for pair, wanted in zip(good, chosen, strict=True) if wanted]
    files, captions = [file for file, _ in good], [caption for _, caption in good]
    return Folder(root, files, captions, split=split, size=data.image_size, tally=tally)


def find_pairs(root: Path) -> Iterator[tuple[str, bytes | Unusable | None]]:
    """Yield (file relative to root, caption bytes or None, or why it cannot be used), sorted."""
    for name, dialect in TABLES.items():
        if (root / name).is_file():
            yield from _read_table(root / name, dialect)
            return
    for file in list_files(root):
        if not file.lower().endswith(ENDINGS):
            continue
        beside = (root / file).with_suffix(".txt")
        lines = beside.read_bytes().splitlines() if beside.is_file() else [None]
        for line in [line for line in lines if line is None or line.strip()] or [b""]:
            yield file, line


def _read_table(path: Path, dialect: str) -> Iterator[tuple[str, bytes | Unusable | None]]:
    """Yield the rows of a table: file, caption, or as the head names its columns.

    Raises ValueError for a broken row, saying where it starts, such as a quote that is not closed.
    """
    quoting = csv.QUOTE_NONE if dialect == "excel-tab" else csv.QUOTE_MINIMAL
    text = path.read_bytes().removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    # Only \n and \r end a row; str.splitlines would also cut at U+2028 and others.
    rows = csv.reader(io.StringIO(text, newline=""), dialect, quoting=quoting, strict=True)
    file, caption, columns, line = 0, 1, 2, 1
    try:
        for row in rows:
            head = [cell.strip().lower() for cell in row]
            if line == 1 and "caption" in head and (set(head) & set(FILE_COLUMNS)):
                caption, columns = head.index("caption"), len(row)
                file = next(i for i, cell in enumerate(head) if cell in FILE_COLUMNS)
            elif len(row) <= max(file, caption):
                yield from [(f"{path.name} line {line}", None)] if row else []
            elif any(head[columns:]):
                yield f"{row[file]}, line {line}", Unusable("more cells than columns")
            elif Path(row[file].strip()).is_absolute() or ".." in Path(row[file]).parts:
                yield row[file], Unusable("path outside the folder")
            else:
                yield row[file].strip(), row[caption].encode("utf-8", "surrogateescape")
            line = rows.line_num + 1
    except csv.Error as error:
        reason = f"{error}; is a quote not closed?" if dialect == "excel" else error
        raise ValueError(f"{path}, row from line {line}: {reason}") from error


def list_files(root: Path) -> list[str]:
    """Return all files under root, as sorted paths relative to it; hidden ones are passed over."""
    found = []
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        found += [(Path(folder) / name).relative_to(root).as_posix() for name in files]
    return sorted(file for file in found if not Path(file).name.startswith("."))


def what_is_in(root: Path) -> str:
    """Say how many files of which kind lie in a folder, for an error message."""
    kinds = Counter(Path(file).suffix.lower() or "without ending" for file in list_files(root))
    found = ", ".join(f"{n} {kind}" for kind, n in kinds.most_common(8)) or "no files"
    return (
        f"found {found}; wanted images ({' '.join(ENDINGS)}) with same-named .txt captions, "
        "a captions.tsv or captions.csv (file, caption), or WebDataset .tar shards"
    )


def files_digest(root: Path, files: list[str]) -> str:
    """Return a digest of names, sizes and times of change."""
    digest = hashlib.sha256()
    for file in files:
        try:
            state = (root / file).stat()
            text = f"{file}\0{state.st_size} {state.st_mtime_ns}\0"
        except OSError:
            text = f"{file}\0gone\0"
        digest.update(text.encode("utf-8", "replace"))
    return digest.hexdigest()


# ---------------------------------------------------------------- splits


def split_folder(root: Path, split: str) -> tuple[Path, bool]:
    """Return the folder to read, and whether all of it is this split (it has a `train` inside)."""
    inside = [name for name in ("train", "test") if (root / name).is_dir()]
    if inside and split not in inside:
        raise ValueError(f"{root} has a folder {inside[0]!r} but none called {split!r}")
    return (root / split, True) if inside else (root, False)


def name_hash(name: str) -> int:
    """Return a number from 0 to 2**32 - 1 that decides, for ever, which split an image is in."""
    return zlib.crc32(os.path.splitext(name)[0].encode("utf-8", "surrogateescape"))


def in_split(hashes: np.ndarray, split: str, n_test: int) -> np.ndarray:
    """Return which pairs are in the split, bool like hashes: about n_test (at most 1/10) are test.

    Images with the same name, such as one with five captions, stay together.
    """
    border = test_border(n_test, len(hashes), int(hashes.min()))
    return (hashes <= border) == (split == "test")


def test_border(n_test: int, total: int, lowest: int) -> int:
    """Return the name hash up to which an image is test: at least the lowest of all."""
    return max(int(min(0.1, n_test / total) * 2**32), lowest)
