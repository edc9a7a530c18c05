"""Image tokens of a whole data set, computed once and kept in a file. N pictures, G grid.

The file is called after what the tokens depend on: the dVAE's weights and the pictures. So tokens
of another dVAE, or of other pictures, are never taken for these.
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
CHUNK = 64  # pictures read at a time
PIXELS = 2**20  # encoded at a time: 16 pictures of 256 x 256, some 4 GiB of the paper's dVAE


def token_key(dvae: torch.nn.Module, dataset: Captioned) -> str:
    """Return a digest of everything that the tokens depend on."""
    digest = hashlib.sha256(f"{FORMAT} {dataset.size} {dvae}".encode())
    for name, weight in dvae.state_dict().items():
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.cpu().contiguous().view(-1).view(torch.uint8).numpy())
    digest.update(dataset.fingerprint().encode())
    return digest.hexdigest()[:32]


def all_tokens(dataset: Captioned, dvae: torch.nn.Module, folder: Path | None) -> np.ndarray:
    """Return the tokens of every picture, (N, G * G) uint16; no_token where one cannot be read.

    Kept in folder / tokens-SPLIT-KEY.npy, from where a later call takes them; older files of the
    split are deleted. With folder None nothing is kept.
    """
    if folder is None:
        return _compute(dataset, dvae)
    path = folder / f"tokens-{dataset.split}-{token_key(dvae, dataset)}.npy"
    tokens = load_array(path, np.uint16, mmap=True)
    if tokens is None or len(tokens) != len(dataset):
        tokens = _compute(dataset, dvae)
        _keep(path, tokens)
    return tokens


def no_token(tokens: np.ndarray) -> int:
    """Return the number that stands in place of tokens where a picture cannot be read."""
    return int(np.iinfo(tokens.dtype).max)


def _keep(path: Path, tokens: np.ndarray) -> None:
    """Write the file and delete those of the same split that it replaces."""
    try:
        save_array(path, tokens)
        for old in path.parent.glob(f"{path.name.rsplit('-', 1)[0]}-*.npy"):
            if old != path:
                old.unlink(missing_ok=True)
    except OSError as error:  # a full disk costs the cache, not the run
        warnings.warn(f"image tokens are not kept: cannot write {path}: {error.strerror or error}")


def _compute(dataset: Captioned, dvae: torch.nn.Module) -> np.ndarray:
    parts = []
    for start in tqdm(
        range(0, len(dataset), CHUNK), desc="image tokens", unit="batch", disable=None
    ):
        rows = range(start, min(start + CHUNK, len(dataset)))
        pictures = [_picture(dataset, i) for i in rows]
        blank = torch.zeros(3, dataset.size, dataset.size, dtype=torch.uint8)
        images = torch.stack([blank if p is None else p for p in pictures])  # (rows, 3, S, S)
        tokens = encode(dvae, images)  # (rows, G * G)
        part = tokens.numpy().astype(np.uint16)
        part[[i for i, picture in enumerate(pictures) if picture is None]] = no_token(part)
        parts.append(part)
    return np.concatenate(parts)


def _picture(dataset: Captioned, i: int) -> Tensor | None:
    try:
        return centre_crop(dataset.read(i), dataset.size)
    except Unusable as why:
        dataset.pass_over(i, why)
        return None


@torch.no_grad()
def encode(dvae: torch.nn.Module, images: Tensor) -> Tensor:
    """Return the image tokens of (B, 3, S, S) uint8 pictures, (B, G * G) int64 on the CPU."""
    device = next(dvae.parameters()).device
    at_once = max(1, PIXELS // images[0, 0].numel())
    parts = [dvae.tokens(x.to(device).float() / 255).flatten(1) for x in images.split(at_once)]
    tokens = torch.cat(parts).cpu()
    if tokens.max() >= 2**16 - 1:
        raise ValueError(f"token {int(tokens.max())} does not fit the cache: at most 65,534")
    return tokens
