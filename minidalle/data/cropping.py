"""Cut a square out of an image: the paper's two random crops, and the plain one in the middle.

H W pixels of the image, S side of its largest square, T side after the shrinking.
Images are uint8 (3, H, W). One smaller than the wanted size is enlarged to it first.
Source: Ramesh et al. 2021, arXiv:2102.12092, listing 1 (appendix A.2) and listing 2 (B.2).
"""

import torch
from torch import Tensor


def area_resize(image: Tensor, height: int, width: int) -> Tensor:
    """Shrink by averaging: each new pixel is the mean of the rectangle that it covers.

    image (…, H, W) uint8; rectangles may cut through pixels, which then count in part.
    Returns (…, height, width) uint8, rounded.
    """
    if image.shape[-2:] == (height, width):
        return image
    rows, columns = _overlaps(image.shape[-2], height), _overlaps(image.shape[-1], width)
    means = rows @ image.float() @ columns.T  # (…, height, width)
    return means.round().clamp(0, 255).to(torch.uint8)


def resize_all(images: Tensor, size: int) -> Tensor:
    """Return many images (N, 3, H, W) at another size, in parts that fit in memory."""
    return torch.cat([area_resize(part, size, size) for part in images.split(1000)])


def _overlaps(old: int, new: int) -> Tensor:
    """Return how much of each new pixel each old one fills, (new, old); every row sums to 1."""
    edges = torch.arange(new + 1, dtype=torch.float64)[:, None] * old / new
    pixels = torch.arange(old, dtype=torch.float64)
    shared = torch.minimum(edges[1:], pixels + 1) - torch.maximum(edges[:-1], pixels)
    return (shared.clamp(min=0) * new / old).float()


def centre_crop(image: Tensor, size: int, generator: torch.Generator | None = None) -> Tensor:
    """Cut the largest square from the middle and shrink it to (3, size, size). Draws nothing."""
    height, width = image.shape[-2:]
    side = min(height, width)
    return area_resize(_square(image, (height - side) // 2, (width - side) // 2, side), size, size)


def crop_stage_one(image: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Listing 1, for the dVAE: a square anywhere, shrunk to 9/8 to 12/8 of size, cut, flipped.

    Returns (3, size, size) uint8.
    """
    height, width = image.shape[-2:]
    side = min(height, width)
    top, left = _draw(0, height - side, generator), _draw(0, width - side, generator)
    image = _square(image, top, left, side)  # (3, S, S)
    image = _shrink_and_cut(image, size, size * 9 // 8, size * 12 // 8, generator)
    return image.flip(-1) if _draw(0, 1, generator) else image


def crop_stage_two(image: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Listing 2, for the transformer: a square near the middle, shrunk to 8/8 to 9/8 of size, cut.

    Never flipped, for captions speak of left and right and images contain writing.
    Returns (3, size, size) uint8.
    """
    height, width = image.shape[-2:]
    side = min(height, width)
    top, left = (
        _draw(3 * slack // 8, 5 * slack // 8, generator) for slack in (height - side, width - side)
    )
    image = _square(image, top, left, side)  # (3, S, S)
    return _shrink_and_cut(image, size, size, size * 9 // 8, generator)


def _shrink_and_cut(
    image: Tensor, size: int, low: int, high: int, generator: torch.Generator
) -> Tensor:
    side = image.shape[-1]
    shrunk = max(size, _draw(min(side, low), min(side, high), generator))
    image = area_resize(image, shrunk, shrunk)  # (3, T, T)
    slack = shrunk - size
    return _square(image, _draw(0, slack, generator), _draw(0, slack, generator), size)


def _square(image: Tensor, top: int, left: int, side: int) -> Tensor:
    return image[..., top : top + side, left : left + side]


def _draw(low: int, high: int, generator: torch.Generator) -> int:
    """Return a whole number, each from low to high (included) equally likely."""
    return int(torch.randint(low, high + 1, (), generator=generator))
