"""Small images, sound and broken, for the tests of folders, shards and streams."""

import io
import struct
import tarfile
import zlib
from pathlib import Path

from PIL import Image

COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (250, 250, 0), (0, 250, 250), (90, 90, 90)]


def png(colour=(255, 0, 0), size=(40, 30), mode="RGB", form="png") -> bytes:
    """Return the bytes of an image of one colour."""
    file = io.BytesIO()
    Image.new(mode, size, colour).save(file, form)
    return file.getvalue()


def bomb(side: int = 20_000) -> bytes:
    """Return a PNG of a few bytes that claims to be side x side pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + head + body


BROKEN = {  # name -> (image bytes, caption bytes or None, the reason that is given)
    "cut_in_half": (png(size=(400, 300), form="bmp")[:1000], b"a caption", "broken image"),
    "no_image_at_all": (b"hello", b"a caption", "not an image"),
    "no_bytes": (b"", b"a caption", "not an image"),
    "bomb": (bomb(), b"a caption", "image of more than 50,000,000 pixels"),
    "large_bomb": (bomb(8000), b"a caption", "image of more than 50,000,000 pixels"),
    "without": (png(), None, "no caption"),
    "empty": (png(), b"", "empty caption"),
    "blank": (png(), b" \n\t\n ", "empty caption"),
    "latin1": (png(), "ein grüner Frosch".encode("latin-1"), "caption that is not UTF-8"),
}


def good_pairs(n: int) -> dict[str, tuple[bytes, bytes]]:
    """Return n sound pairs of different colours, the caption naming the number."""
    pairs = {}
    for i in range(n):
        colour = (i % 256, i // 256 * 20, 255 - i % 256)
        pairs[f"image_{i:03d}"] = (png(colour), f"image number {i}".encode())
    return pairs


def write_folder(root: Path, pairs: dict) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for name, (image, caption, *_) in pairs.items():
        (root / f"{name}.png").write_bytes(image)
        if caption is not None:
            (root / f"{name}.txt").write_bytes(caption)
    return root


def write_tar(path: Path, pairs: dict) -> Path:
    """Write a shard as img2dataset does: KEY.jpg, KEY.json, KEY.txt."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, (image, caption, *_) in pairs.items():
            for ending, body in (("png", image), ("json", b"{}"), ("txt", caption)):
                if body is not None:
                    member = tarfile.TarInfo(f"{name}.{ending}")
                    member.size = len(body)
                    tar.addfile(member, io.BytesIO(body))
    return path
