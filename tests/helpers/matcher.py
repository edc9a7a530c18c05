"""A second judge that learns nothing: which rendering, over all places and sizes, is nearest?

N images, M masks (a shape at a place with a radius), P pixels of an image, C pairs of colours.
With the learned judge it shares only the drawing of scenes, so where the two agree, neither has
been fooled by the look of reconstructions. Source: ours; template matching by least squares.
"""

from functools import lru_cache
from itertools import product

import numpy as np
import torch
from torch import Tensor

from minidalle.data import shapes

STEP = 1.0  # pixels between neighbouring places
N_RADII = 3  # radii tried for each word of size


@lru_cache(maxsize=1)
def masks() -> tuple[Tensor, list[dict[str, str]]]:
    """Draw what an object covers, at every place and with every radius: about 3 seconds.

    Returns (M, P) float32 in [0, 1], and the shape, size and position of each mask.
    """
    shifts = np.arange(-shapes.JITTER, shapes.JITTER + STEP / 2, STEP)
    scales = np.linspace(1 - shapes.SIZE_JITTER, 1 + shapes.SIZE_JITTER, N_RADII)
    found, names = [], []
    for shape, size, position in product(shapes.SHAPES, shapes.SIZES, shapes.POSITIONS):
        for scale, dx, dy in product(scales, shifts, shifts):
            centre = np.array(shapes.POSITIONS[position]) + np.array([dx, dy])
            found.append(shapes.cover(shape, centre, shapes.SIZES[size] * scale))
            names.append({"shape": shape, "size": size, "position": position})
    return torch.from_numpy(np.stack(found)).float(), names


@torch.no_grad()
def read(images: Tensor, batch_size: int = 16) -> dict[str, list[str]]:
    """Name what images show: the attributes of the nearest rendering, one of each an image.

    images (N, 3, 32, 32), uint8 or float in [0, 1]. The distance is the sum of squares over all
    pixels; a mask m with ink i on ground g renders g + m (i - g).
    """
    cover, names = masks()
    pairs = list(product(shapes.COLOURS, shapes.BACKGROUNDS))
    ink = torch.tensor([shapes.COLOURS[c] for c, _ in pairs]) / 255  # (C, 3)
    ground = torch.tensor([shapes.BACKGROUNDS[b] for _, b in pairs]) / 255  # (C, 3)
    step = ink - ground
    area, square = cover.sum(1), cover.square().sum(1)  # (M,)
    # |g + m d|^2 summed over pixels, for every mask and pair of colours.
    own = (2 * area[:, None] * (ground * step).sum(1)
           + square[:, None] * step.square().sum(1))  # (M, C)  # fmt: skip
    own = own + cover.shape[1] * ground.square().sum(1)
    found = {name: [] for name in shapes.ATTRIBUTES}
    for part in images.split(batch_size):
        part = part / 255 if part.dtype == torch.uint8 else part.float()
        x = part.flatten(2)  # (N, 3, P)
        inside = torch.einsum("mp,ncp->nmc", cover, x)  # (N, M, 3)
        # |x - g - m d|^2 without |x|^2, which all share.
        cross = inside @ step.T + (x.sum(2) @ ground.T)[:, None]  # (N, M, C)
        best = (own - 2 * cross).flatten(1).argmin(1).tolist()  # (N,)
        for index in best:
            mask, pair = divmod(index, len(pairs))
            answer = names[mask] | dict(zip(("colour", "background"), pairs[pair], strict=True))
            for name in found:
                found[name].append(answer[name])
    return found
