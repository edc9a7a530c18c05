"""Image prompts: which tokens of an image are kept, and what is drawn around them.

Tokens are drawn in raster order. What is kept before the first drawn cell is seen by all drawn
cells; what is kept behind one is copied, and the cells before it were drawn without seeing it.
Source: Ramesh et al. 2021, arXiv:2102.12092, figure 2d; github.com/ai-forever/ru-dalle (borders).
"""

import re
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minidalle.data.captioned import Unusable
from minidalle.data.cropping import centre_crop
from minidalle.data.images import decode_image
from minidalle.tokenizer import PAD

SIDES = {
    "top": "0:{n},0:{g}", "bottom": "{rest}:{g},0:{g}",
    "left": "0:{g},0:{n}", "right": "0:{g},{rest}:{g}",
}  # fmt: skip


def keep_part(text: str, grid: int) -> Tensor:
    """Read which cells are kept: strips such as 'top:4', rectangles 'ROW:ROW,COLUMN:COLUMN'.

    A rectangle's ends are not part of it, as in Python; several parts are joined by '+'.
    Returns (grid, grid) bool. Raises ValueError for anything else, or where nothing would be
    kept, or nothing drawn.
    """
    keep = torch.zeros(grid, grid, dtype=torch.bool)
    for part in text.split("+"):
        side, _, count = part.partition(":")
        if side in SIDES and count.isdecimal() and int(count) <= grid:
            part = SIDES[side].format(n=count, rest=grid - int(count), g=grid)
        found = re.fullmatch(r"(\d+):(\d+),(\d+):(\d+)", part)
        if not found or max(map(int, found.groups())) > grid:
            raise ValueError(f"{part!r} is no part of {grid} x {grid} tokens, such as top:2")
        top, bottom, left, right = map(int, found.groups())
        keep[top:bottom, left:right] = True
    return _check(keep, text)


def keep_black(path: Path, grid: int) -> Tensor:
    """Read a mask image: a cell is drawn anew where any pixel of it is more white than black.

    Returns the cells that are kept, (grid, grid) bool. Errors as `keep_part` and `read`.
    """
    image = _square(path, None)
    white = (image.float().mean(0, keepdim=True) > 127).float()  # (1, S, S)
    return _check(F.adaptive_max_pool2d(white, grid)[0] == 0, str(path))


def read(path: Path, codebook: nn.Module, keep: Tensor) -> Tensor:
    """Return an image's tokens as a prompt (N,) int64, PAD where `keep` (grid, grid) is False.

    Raises ValueError where the file is no image, or the codebook can only draw.
    """
    if not hasattr(codebook, "encoder"):
        raise ValueError("this model's files hold no image encoder: it can only draw")
    image = _square(path, codebook.config.image_size).float() / 255
    device = next(codebook.parameters()).device
    with torch.no_grad():
        tokens = codebook.tokens(image[None].to(device))[0].cpu()  # (grid, grid)
    return tokens.masked_fill(~keep, PAD).flatten()


def describe(keep: Tensor) -> str:
    """Say how many tokens are kept, and how many of them the first drawn cells do not see."""
    cells = keep.flatten()
    late = int(cells[int(cells.int().argmin()) :].sum())
    said = f"Keeping {int(cells.sum())} of {len(cells)} image tokens."
    if late:
        said += f" {late} of them lie behind a drawn one: copied, and unseen by the cells before."
    return said


def _check(keep: Tensor, name: str) -> Tensor:
    if keep.all() or not keep.any():
        raise ValueError(f"{name} keeps {'every' if keep.all() else 'no'} image token")
    return keep


def _square(path: Path, size: int | None) -> Tensor:
    """Read the square in the middle of an image, (3, size, size) uint8; None keeps its size."""
    try:
        image = decode_image(path)
    except Unusable as error:
        raise ValueError(f"{path}: {error}") from None
    return centre_crop(image, size or min(image.shape[1:]))
