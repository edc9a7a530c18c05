"""Turn picture files and captions of unknown quality into tensors and text. Pillow lives here.

H W pixels.
"""

from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from minidalle.data.captioned import Unusable

MAX_PIXELS = 50_000_000  # of one picture: 150 MB decoded
ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")


def picture_size(source: Path | bytes) -> tuple[int, int]:
    """Return (width, height) from the header alone. Raises Unusable."""
    with _opened(source) as picture:
        return picture.size


def decode_picture(source: Path | bytes) -> Tensor:
    """Return a picture as (3, H, W) uint8, upright, clear parts white. Raises Unusable."""
    with _opened(source) as picture:
        try:
            pixels = np.array(_as_rgb(picture))  # (H, W, 3)
        except Exception as error:  # decoders raise whatever they like on damaged bytes
            raise Unusable("broken picture") from error
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()  # (3, H, W)


def _opened(source: Path | bytes) -> Image.Image:
    try:
        picture = Image.open(BytesIO(source) if isinstance(source, bytes) else source)
    except FileNotFoundError as error:
        raise Unusable("missing picture") from error
    except UnidentifiedImageError as error:
        raise Unusable("not a picture") from error
    except Image.DecompressionBombError as error:
        raise Unusable(f"picture of more than {MAX_PIXELS:,} pixels") from error
    except Exception as error:  # as above
        raise Unusable("broken picture") from error
    if picture.width * picture.height > MAX_PIXELS:
        picture.close()
        raise Unusable(f"picture of more than {MAX_PIXELS:,} pixels")
    return picture


def _as_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I;16") or picture.mode == "I":  # Pillow would clip at 255
        grey = np.asarray(picture).astype(np.float64) / 65535 * 255
        picture = Image.fromarray(grey.round().clip(0, 255).astype(np.uint8))
    picture = ImageOps.exif_transpose(picture)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        ground = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(ground, picture)
    return picture.convert("RGB")


def check_aspect(size: tuple[int, int], max_aspect: float) -> None:
    """Raise Unusable if one side is more than max_aspect times the other; 0 allows all."""
    if max_aspect and max(size) > max_aspect * min(size):
        raise Unusable(f"longer than {max_aspect:g} times its width or height", filtered=True)


def read_caption(raw: bytes | None, min_length: int = 0) -> str:
    """Return caption bytes as text, runs of white space made one space. Raises Unusable."""
    if raw is None:
        raise Unusable("no caption")
    try:
        text = " ".join(raw.decode("utf-8-sig").split())
    except UnicodeDecodeError as error:
        raise Unusable("caption that is not UTF-8") from error
    if not text:
        raise Unusable("empty caption")
    if len(text) < min_length:
        raise Unusable(f"caption under {min_length} characters", filtered=True)
    return text
