"""Emoji with their official names, from any folder or archive laid out as a published set.

S side in pixels. Understood are: NAME_72.npz arrays with a captions.tsv, and PNG files called after
their code points as in Noto Emoji (emoji_u1f600.png), Twemoji (1f600.png) and OpenMoji (1F600.png),
in a folder, .zip or .tar. Names come from captions.tsv, openmoji.csv or Unicode's emoji-test.txt
among the files, and else, for single characters, from Python's own table. No skin tones.
"""

import csv
import io
import re
import tarfile
import unicodedata
import warnings
import zipfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torch import Tensor

from minidalle.config import DataConfig
from minidalle.data.captioned import InMemory, Tally, Unusable
from minidalle.data.cropping import area_resize
from minidalle.data.folders import in_split, list_files, name_hash
from minidalle.data.images import decode_picture, picture_size
from minidalle.data.public import find, resized

CODE = re.compile(r"(?:emoji_u)?([0-9a-f]{2,6}(?:[-_][0-9a-f]{2,6})*)\.png", re.IGNORECASE)
SKIN_TONES = {"1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF"}
MAX_BYTES = 2**26  # of one file in an archive


def load_emoji(split: str, data: DataConfig) -> InMemory:
    """Return emoji on white, each drawing of it one picture; the caption is its name.

    About a tenth are test, chosen by code point, so that all drawings of one emoji stay together.
    Raises ValueError when there are none, naming where they were looked for.
    """
    place = Path(data.folder) if data.folder else find("emoji")
    if place is None or not place.exists():
        raise ValueError(
            f"no emoji at {place or 'emoji/ under MINIDALLE_DATA or data/'}: unpack a published "
            "set there (github.com: googlefonts/noto-emoji, jdecked/twemoji, hfg-gmuend/openmoji) "
            "or give its folder or archive as data.folder=PATH"
        )
    arrays = sorted(place.glob("*_72.npz")) if place.is_dir() else []
    read = _from_arrays if arrays else _from_files
    images, names, codes, style = read(place, arrays, data.image_size)
    chosen = in_split(np.array([name_hash(code) for code in codes]), split, data.n_test)
    kept = np.flatnonzero(chosen).tolist()
    attributes = [{"code": codes[i], "name": names[i], "style": style[i]} for i in kept]
    return InMemory(images[kept], [names[i] for i in kept], attributes, split)


def _from_arrays(place: Path, arrays: list[Path], size: int):
    """Read NAME_72.npz: images (N, 72, 72, 4), rows (N,) of captions.tsv."""
    with (place / "captions.tsv").open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    parts, names, codes, style = [], [], [], []
    for path in arrays:
        with np.load(path, allow_pickle=False) as stored:
            rows, rgba = stored["rows"], stored["images"]
        plain = [k for k, row in enumerate(rows) if not table[row]["skintone_base"]]
        parts.append(resized(on_white(rgba[plain]), size))
        names += [table[rows[k]]["caption"] for k in plain]
        codes += [table[rows[k]]["code"] for k in plain]
        style += [path.stem.removesuffix("_72")] * len(plain)
    return torch.cat(parts), names, codes, style


def on_white(rgba: np.ndarray) -> Tensor:
    """Lay pictures (N, S, S, 4) uint8 on white: (N, 3, S, S) uint8."""
    alpha = rgba[..., 3:].astype(np.float32) / 255
    rgb = rgba[..., :3] * alpha + 255 * (1 - alpha)
    return torch.from_numpy(rgb.round().astype(np.uint8)).permute(0, 3, 1, 2).contiguous()


def _from_files(place: Path, _: list, size: int):
    """Read PNG files called after their code points; count those without a name or broken."""
    files, read = _open_set(place)
    pictures = _best_folder(files, read, size)
    official = _official_names(files, read)
    tally = Tally(len(pictures))
    images, names, codes = [], [], []
    for code, file in pictures.items():
        try:
            name = official.get(code) or _unicode_name(code)
            images.append(area_resize(decode_picture(read(file)), size, size))
            names.append(name)
            codes.append(code)
        except Unusable as why:
            tally.add(PurePosixPath(file).name, why)
    if not images:
        raise ValueError(
            f"no emoji in {place}: of {len(files)} files {len(pictures)} are PNG files named by "
            f"code points, such as 1f600.png; {tally.line()}".rstrip("; ")
        )
    if tally.line():
        warnings.warn(tally.line())
    return torch.stack(images), names, codes, [place.stem] * len(codes)


def _open_set(place: Path) -> tuple[list[str], Callable[[str], bytes]]:
    """Return the files of a folder or archive, and how to read one."""
    if place.is_dir():
        return list_files(place), lambda file: (place / file).read_bytes()
    if zipfile.is_zipfile(place):
        archive = zipfile.ZipFile(place)
        sizes = {member.filename: member.file_size for member in archive.infolist()}
        files = sorted(file for file, size in sizes.items() if 0 < size <= MAX_BYTES)
        return files, archive.read
    try:
        with tarfile.open(place) as tar:  # a compressed tar cannot be read by place: keep it all
            held = {
                member.name: tar.extractfile(member).read()
                for member in tar
                if member.isfile() and member.size <= MAX_BYTES
            }
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ValueError(f"{place} is no folder and no whole .zip or .tar") from error
    return sorted(held), held.__getitem__


def _best_folder(files: list[str], read: Callable, size: int) -> dict[str, str]:
    """Return code -> file of the fullest folder of coloured emoji; the smallest that is >= size."""
    folders: dict[str, dict[str, str]] = defaultdict(dict)
    for file in files:
        path = PurePosixPath(file)
        match = CODE.fullmatch(path.name)
        if match and "black" not in path.parts:  # OpenMoji's line drawings
            points = [p for p in re.split("[-_]", match[1].upper().lstrip("0")) if p != "FE0F"]
            if not SKIN_TONES & set(points):
                folders[str(path.parent)]["-".join(points)] = file
    most = max((len(found) for found in folders.values()), default=0)
    full = [found for found in folders.values() if len(found) > 0.9 * most]

    def unfit(found: dict[str, str]) -> tuple[bool, int]:
        try:
            side = min(picture_size(read(next(iter(found.values())))))
        except Unusable:
            side = 0
        return side < size, side

    return min(full, key=unfit, default={})


def _official_names(files: list[str], read: Callable) -> dict[str, str]:
    """Return code -> name from the first list of names among the files, or nothing."""
    readers = {"captions.tsv": _read_table, "openmoji.csv": _read_table}
    for name, reader in {**readers, "emoji-test.txt": _read_unicode_test}.items():
        for file in files:
            if PurePosixPath(file).name == name:
                return reader(io.StringIO(read(file).decode("utf-8-sig")))
    return {}


def _read_table(text: io.StringIO) -> dict[str, str]:
    """Read captions.tsv (code, caption) or openmoji.csv (hexcode, annotation)."""
    head = text.readline()
    text.seek(0)
    rows = csv.DictReader(text, delimiter="\t" if "\t" in head else ",")
    return {
        "-".join(
            p for p in (row.get("code") or row.get("hexcode")).upper().split("-") if p != "FE0F"
        ): row.get("caption") or row.get("annotation")
        for row in rows
    }


def _read_unicode_test(text: io.StringIO) -> dict[str, str]:
    """Read lines such as '1F600 ; fully-qualified # 😀 E1.0 grinning face'."""
    names = {}
    for line in text:
        match = re.match(r"([0-9A-F ]+);[^#]*# \S+ E\d+\.\d+ (.+)", line)
        if match:
            points = [p for p in match[1].split() if p != "FE0F"]
            names.setdefault("-".join(points), match[2].strip())
    return names


def _unicode_name(code: str) -> str:
    try:
        return unicodedata.name(chr(int(code, 16))).lower()
    except ValueError as error:  # a sequence of several, or a code point unknown to this Python
        raise Unusable("no official name") from error
