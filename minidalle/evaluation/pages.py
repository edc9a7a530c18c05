"""Web pages that carry their pictures inside, so that one file can be sent and opened anywhere.

S side in pixels. Source: the PNG specification, third edition (W3C 2025), sections 5, 9 and 11.
"""

import base64
import struct
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import Tensor

from minidalle import plot

STYLE = """
body { font: 16px/1.45 system-ui, sans-serif; max-width: 62rem; margin: 1.5rem auto;
  padding: 0 1rem; color: #1a1a1a; background: #fff; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2rem; }
table { border-collapse: collapse; margin: .8rem 0; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: .3rem; color: #444; }
th, td { border: 1px solid #bbb; padding: .25rem .6rem; text-align: right; }
th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; }
.pixels { image-rendering: pixelated; }
"""


def encode_png(image: Tensor) -> bytes:
    """Write a picture (3, S, S) uint8, or float in [0, 1], as the bytes of a PNG file.

    Raises ValueError for another shape.
    """
    if image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(f"a picture must be (3, H, W), got {tuple(image.shape)}")
    if image.is_floating_point():
        image = (image.clamp(0, 1) * 255).round().byte()
    height, width = image.shape[1:]
    rows = image.permute(1, 2, 0).contiguous().cpu().numpy()  # (H, W, 3)
    raw = b"".join(b"\0" + row.tobytes() for row in rows)  # filter 0: bytes as they are
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits, RGB
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(raw, 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    check = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)


def data_uri(png: bytes) -> str:
    """Turn a PNG file into the text that stands for it in a page."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def figure_uri(figure) -> str:
    """Turn a figure of `plot` into the text that stands for it in a page, and close it."""
    figure.set_dpi(2 * figure.dpi)  # sharp on fine screens
    with TemporaryDirectory() as folder:
        return data_uri(plot.save(figure, Path(folder) / "figure.png").read_bytes())
