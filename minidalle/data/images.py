"""Turn image files and captions of unknown quality into tensors and text. Pillow lives here.

H W pixels.
"""

from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from minidalle.data.captioned import Unusable

MAX_PIXELS = 50_000_000  # of one image: 150 MB decoded
# Formats that Pillow reads by itself: of others it hands some to programs, such as Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")


def image_size(source: Path | bytes) -> tuple[int, int]:
    """Return (width, height) from the header alone. Raises Unusable."""
    with _opened(source) as image:
        return image.size


def decode_image(source: Path | bytes) -> Tensor:
    """Return an image as (3, H, W) uint8, upright, clear parts white. Raises Unusable."""
    with _opened(source) as image:
        try:
            pixels = np.array(_as_rgb(image))  # (H, W, 3)
        except Exception as error:  # decoders raise whatever they like on damaged bytes
            raise Unusable("broken image") from error
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()  # (3, H, W)


def _opened(source: Path | bytes) -> Image.Image:
    too_large = f"image of more than {MAX_PIXELS:,} pixels"
    if isinstance(source, Path) and not source.is_file():  # opening a pipe would wait for ever
        raise Unusable("not a file" if source.exists() else "missing image")
    try:
        file = BytesIO(source) if isinstance(source, bytes) else source
        image = Image.open(file, formats=FORMATS)
    except UnidentifiedImageError as error:
        raise Unusable("not an image") from error
    except Image.DecompressionBombError as error:
        raise Unusable(too_large) from error
    except Exception as error:  # as above
        raise Unusable("broken image") from error
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise Unusable(too_large)
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        raise Unusable("image of 32-bit numbers, whose range is unknown")
    return image


def _as_rgb(image: Image.Image) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would clip at 255
        grey = np.asarray(image).astype(np.float64)
        white = grey == image.info.get("transparency", -1)
        grey = np.where(white, 255, (grey / 65535 * 255).round().clip(0, 255))
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


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
