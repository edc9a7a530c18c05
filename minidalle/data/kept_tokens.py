"""Image tokens of a whole data set, computed once and kept in a file. N images, G grid.

The file is called after what the tokens depend on: the dVAE's weights and the images. So tokens
of another dVAE, or of other images, are never taken for these.
"""

import hashlib
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from minidalle.data.captioned import Captioned, Unusable
from minidalle.data.cropping import centre_crop
from minidalle.files import load_array, save_array

FORMAT = 1  # raise it when the meaning of the file changes
CHUNK = 64  # images read at a time
PIXELS = 2**20  # encoded at a time: 16 images of 256 x 256, some 4 GiB of the paper's dVAE
NO_TOKEN = 2**16 - 1  # in place of tokens where an image cannot be read


def token_key(dvae: torch.nn.Module, dataset: Captioned) -> str:
    """Return a digest of everything that the tokens depend on."""
    digest = hashlib.sha256(f"{FORMAT} {dataset.size} {dvae}".encode())
    for name, weight in dvae.state_dict().items():
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.cpu().contiguous().view(-1).view(torch.uint8).numpy())
    digest.update(dataset.fingerprint().encode())
    return digest.hexdigest()[:32]


def all_tokens(dataset: Captioned, dvae: torch.nn.Module, folder: Path | None) -> np.ndarray:
    """Return the tokens of every image, (N, G * G) uint16; NO_TOKEN where one cannot be read.

    Kept in folder / tokens-SPLIT-KEY.npy, from where a later call takes them; older files of the
    split are deleted. With folder None nothing is kept.
    """
    if folder is None:
        return _compute(dataset, dvae)
    path = folder / f"tokens-{dataset.split}-{token_key(dvae, dataset)}.npy"
    tokens = load_array(path, np.uint16, mmap=True)
    if tokens is not None and len(tokens) == len(dataset):
        return tokens
    tokens = _compute(dataset, dvae)
    try:
        save_array(path, tokens)
        for old in folder.glob(f"tokens-{dataset.split}-*.npy"):
            if old != path:
                old.unlink(missing_ok=True)
    except OSError as error:  # a full disk costs the file, not the run
        warnings.warn(f"image tokens are not kept: {error}")
    return tokens


def _compute(dataset: Captioned, dvae: torch.nn.Module) -> np.ndarray:
    starts = range(0, len(dataset), CHUNK)
    parts = []
    for start in tqdm(starts, desc="image tokens", unit="batch", disable=None):
        # Read a chunk; a blank stands where an image cannot be read.
        n = min(CHUNK, len(dataset) - start)
        images = torch.zeros(n, 3, dataset.size, dataset.size, dtype=torch.uint8)
        missing = []
        for row in range(n):
            try:
                images[row] = centre_crop(dataset.read(start + row), dataset.size)
            except Unusable as why:
                dataset.pass_over(start + row, why)
                missing.append(row)
        # Encode it, then take the blanks out again.
        tokens = encode(dvae, images).numpy().astype(np.uint16)  # (n, G * G)
        tokens[missing] = NO_TOKEN
        parts.append(tokens)
    return np.concatenate(parts)


@torch.no_grad()
def encode(dvae: torch.nn.Module, images: Tensor) -> Tensor:
    """Return the image tokens of (B, 3, S, S) uint8 images, (B, G * G) int64 on the CPU."""
    device = next(dvae.parameters()).device
    at_once = max(1, PIXELS // images[0, 0].numel())
    parts = [dvae.tokens(x.to(device).float() / 255).flatten(1) for x in images.split(at_once)]
    tokens = torch.cat(parts).cpu()
    if tokens.max() >= NO_TOKEN:
        raise ValueError(f"token {int(tokens.max())} does not fit the cache: at most 65,534")
    return tokens


@torch.no_grad()
def draw(dvae: torch.nn.Module, images: Tensor, uniform: Tensor) -> Tensor:
    """Draw the image tokens of (B, 3, S, S) uint8 images from the dVAE's q, (B, G * G) int64.

    uniform: (B, G * G) in [0, 1), the number that decides each token. Footnote 6 of the paper.
    Raises ValueError for a codebook that has no probabilities to draw from.
    """
    if not hasattr(dvae, "logits"):
        name = type(dvae).__name__
        raise ValueError(f"train_dalle.draw_tokens needs codebook=dvae: a {name} has no q to draw")
    device = next(dvae.parameters()).device
    q = dvae.logits(images.to(device).float() / 255).double().softmax(1)  # (B, K, g, g)
    below = q.flatten(2).mT.cumsum(-1).cpu()  # (B, G * G, K)
    target = uniform[..., None] * below[..., -1:]
    return torch.searchsorted(below, target, right=True)[..., 0].clamp(max=q.shape[1] - 1)
