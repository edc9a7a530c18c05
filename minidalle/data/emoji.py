"""Emoji with their official names, from any folder or archive laid out as a published set.

S side in pixels. Understood are: NAME_72.npz arrays with a captions.tsv, and PNG files called after
their code points as in Noto Emoji (emoji_u1f600.png), Twemoji (1f600.png) and OpenMoji (1F600.png),
in a folder, .zip or .tar. Names come from captions.tsv, openmoji.csv or Unicode's emoji-test.txt
among the files, and else, for single characters, from Python's own table. No skin tones.
"""

import contextlib
import csv
import re
import shutil
import unicodedata
from collections import defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from minidalle.config import DataConfig
from minidalle.data.captioned import InMemory, Tally, Unusable
from minidalle.data.cropping import area_resize, resize_all
from minidalle.data.folders import in_split, list_files, name_hash
from minidalle.data.images import decode_image, image_size
from minidalle.files import find

FILE = re.compile(r"(?:emoji_u)?([0-9a-f]{2,6}(?:[-_][0-9a-f]{2,6})*)\.png", re.IGNORECASE)
UNICODE = re.compile(r"^([0-9A-F ]+);[^#\n]*# \S+ E\d+\.\d+ (.+)$", re.MULTILINE)
SKIN_TONES = {"1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF"}


def load_emoji(split: str, data: DataConfig, seed: int) -> InMemory:
    """Return emoji on white, each drawing of it one image; the caption is its name.

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
    if place.is_dir():
        read = _read_arrays if any(place.glob("*_72.npz")) else _read_files
        images, found = read(place, data.image_size)
    else:
        with TemporaryDirectory() as folder:
            try:  # without what would lie outside the folder
                only_data = {} if place.suffix.lower() == ".zip" else {"filter": "data"}
                shutil.unpack_archive(place, folder, **only_data)
            except Exception as error:  # unpackers raise whatever they like
                raise ValueError(f"{place} is no folder and no whole .zip or .tar") from error
            images, found = _read_files(Path(folder), data.image_size)
    codes = np.array([name_hash(attributes["code"]) for attributes in found])
    kept = np.flatnonzero(in_split(codes, split, data.n_test)).tolist()
    return InMemory(images[kept], [found[i]["name"] for i in kept], [found[i] for i in kept], split)


def _read_arrays(place: Path, size: int) -> tuple[torch.Tensor, list[dict]]:
    """Read NAME_72.npz: images (N, 72, 72, 4), rows (N,) of captions.tsv."""
    with (place / "captions.tsv").open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    parts, found = [], []
    for path in sorted(place.glob("*_72.npz")):
        with np.load(path, allow_pickle=False) as stored:
            rows, rgba = [table[i] for i in stored["rows"]], stored["images"]
        plain = [i for i, row in enumerate(rows) if not row["skintone_base"]]
        # Lay them on white.
        alpha = rgba[plain, ..., 3:].astype(np.float32) / 255
        rgb = (rgba[plain, ..., :3] * alpha + 255 * (1 - alpha)).round().astype(np.uint8)
        parts.append(resize_all(torch.from_numpy(rgb).permute(0, 3, 1, 2), size))  # (N, 3, S, S)
        found += [{"code": rows[i]["code"], "name": rows[i]["caption"]} for i in plain]
    return torch.cat(parts), found


def _read_files(place: Path, size: int) -> tuple[torch.Tensor, list[dict]]:
    """Read PNG files called after their code points; count those without a name or broken."""
    # Sort them by folder: sets hold several sizes, and OpenMoji line drawings in `black`.
    files, folders = [place / file for file in list_files(place)], defaultdict(dict)
    for path in files:
        match = FILE.fullmatch(path.name)
        code = _code(match[1]) if match and "black" not in path.parts else ""
        if code and not SKIN_TONES & set(code.split("-")):
            folders[path.parent][code] = path
    # Of the fullest folders, take that with the smallest images of at least `size`.
    most = max(map(len, folders.values()), default=0)
    full = [found for found in folders.values() if len(found) > 0.9 * most]
    chosen = min(full, key=lambda found: _unfit(next(iter(found.values())), size), default={})
    # Read them, with the names that the set gives or Unicode has.
    names, tally, images, found = _names(files), Tally(len(chosen)), [], []
    for code, path in chosen.items():
        try:
            name = names.get(code) or unicodedata.name(chr(int(code, 16))).lower()
            images.append(area_resize(decode_image(path), size, size))
            found.append({"code": code, "name": name})
        except Unusable as why:
            tally.add(path.name, why)
        except ValueError:  # several code points, or one that this Python does not know
            tally.add(path.name, Unusable("no official name"))
    tally.close(len(images), place, lambda: f"of {len(files)} files none is called 1f600.png or so")
    return torch.stack(images), found


def _code(points: str) -> str:
    """'1f600' or '00A9 FE0F' -> '1F600' or 'A9'."""
    return "-".join(p for p in re.split("[-_ ]", points.strip().upper()) if p != "FE0F").lstrip("0")


def _unfit(path: Path, size: int) -> tuple[bool, int]:
    side = 0
    with contextlib.suppress(Unusable):
        side = min(image_size(path))
    return side < size, side


def _names(files: list[Path]) -> dict[str, str]:
    """Return code -> name from the lists of names among the files."""
    names = {}
    for path in files:
        if path.name == "emoji-test.txt":
            names |= {_code(c): n.strip() for c, n in UNICODE.findall(path.read_text("utf-8"))}
        elif path.name in ("openmoji.csv", "captions.tsv"):
            with path.open(encoding="utf-8-sig", newline="") as text:
                for row in csv.DictReader(text, delimiter=",\t"[path.suffix == ".tsv"]):
                    code = row.get("code") or row.get("hexcode") or ""
                    names[_code(code)] = row.get("caption") or row.get("annotation")
    return names
