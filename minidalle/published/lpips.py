"""LPIPS: how different two images look, by the features of a network that knows photographs.

Two files as published: torchvision's VGG16 (528 MB), and the weights that LPIPS learnt from what
people said (7 kB, in the package lpips). B batch, C channels, H W pixels.
Source: Zhang et al. 2018, arXiv:1801.03924; github.com/richzhang/PerceptualSimilarity, lpips.py.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from minidalle.published.weights import fill, pick, read_state

VGG, HEADS = "vgg16-397923af.pth", "vgg.pth"
LEVELS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # channels, convolutions
MEAN, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of pixels in [-1, 1]


class LPIPS(nn.Module):
    """VGG16's convolutions, and a weight for each channel of each level; names as published."""

    def __init__(self):
        super().__init__()
        layers, heads, n_in, self.ends = [], {}, 3, []
        for i, (width, n) in enumerate(LEVELS):
            layers += [nn.MaxPool2d(2)] if layers else []
            for _ in range(n):
                layers += [nn.Conv2d(n_in, width, 3, padding=1), nn.ReLU()]
                n_in = width
            self.ends.append(len(layers) - 1)
            weights = nn.Conv2d(width, 1, 1, bias=False)
            heads[f"lin{i}"] = nn.ModuleDict({"model": nn.Sequential(nn.Identity(), weights)})
        self.vgg = nn.ModuleDict({"features": nn.Sequential(*layers)})
        self.heads = nn.ModuleDict(heads)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1], sides at least 16 -> their mean distance, a scalar."""
        mean, scale = (a.new_tensor(v)[:, None, None] for v in (MEAN, SCALE))
        x = (2 * torch.cat([a, b]) - 1 - mean) / scale  # (2B, 3, H, W)
        heads, distance = iter(self.to(x.device).heads.values()), a.new_zeros(())
        for i, layer in enumerate(self.vgg["features"]):
            x = layer(x)
            if i in self.ends:
                length = (x.float().square().sum(1, keepdim=True) + 1e-20).sqrt()
                y = x / length  # (2B, C, H, W); no NaN in its gradient where all are zero
                apart = (y[: len(a)] - y[len(a) :]).square()
                distance = distance + next(heads)["model"](apart).mean()
        return distance


def load(folder: str | Path) -> LPIPS:
    """Load LPIPS from the folder that holds both files.

    Raises FileNotFoundError, or ValueError that names file and key.
    """
    with torch.device("meta"):
        model = LPIPS()
    for part, name, ignore in ((model.vgg, VGG, ["classifier."]), (model.heads, HEADS, [])):
        fill(part, read_state(path := pick(folder, [name]), ignore), path)
    return model.requires_grad_(False)
