"""A second network that tells decoded images from real ones, patch by patch, and so draws edges.

Source: Isola et al. 2017, arXiv:1611.07004 (PatchGAN); Esser et al. 2021, arXiv:2012.09841, section
3.1 (adaptive weight); github.com/CompVis/taming-transformers, modules/losses/vqperceptual.py.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from minidalle.config import VQGANConfig

MOST_WEIGHT = 1e4  # of the adaptive weight
STEADY = 1e-4  # added to the norm that it is divided by


class PatchGAN(nn.Sequential):
    """Images (B, 3, H, W) -> a logit for each patch (B, 1, h, w), high where it looks real.

    n_layers convolutions halve the sides; two more keep them, less one pixel each.
    """

    def __init__(self, width: int = 64, n_layers: int = 3):
        def conv(n_in: int, n_out: int, stride: int, bias: bool) -> nn.Conv2d:
            return nn.Conv2d(n_in, n_out, 4, stride, padding=1, bias=bias)

        widths = [width * min(2**i, 8) for i in range(n_layers + 1)]
        layers = [conv(3, width, 2, bias=True), nn.LeakyReLU(0.2)]
        for i in range(1, n_layers + 1):
            layers.append(conv(widths[i - 1], widths[i], 2 if i < n_layers else 1, bias=False))
            layers += [nn.BatchNorm2d(widths[i]), nn.LeakyReLU(0.2)]
        super().__init__(*layers, conv(widths[-1], 1, 1, bias=True))
        for module in self:
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0, 0.02)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1, 0.02)


def adaptive_weight(error: Tensor, verdict: Tensor, last: Tensor) -> Tensor:
    """How strongly the verdict must pull at the decoder's last weights to pull as the error does.

    |d error / d last| / |d verdict / d last|, at most MOST_WEIGHT, without a gradient.
    """
    norms = [torch.autograd.grad(x, last, retain_graph=True)[0].norm() for x in (error, verdict)]
    return (norms[0] / (norms[1] + STEADY)).clamp(0, MOST_WEIGHT).detach()


class Adversary(nn.Module):
    """Both sides of the game as one loss, so that one optimiser and one checkpoint hold them.

    The published code moves the two in turn, with an optimiser each. Here each update moves both:
    the decoder against the discriminator as it stood before, and the other way round.
    """

    def __init__(self, config: VQGANConfig):
        super().__init__()
        self.weight, self.start = config.disc_weight, config.disc_start
        self.discriminator = PatchGAN(config.disc_width, config.disc_layers)

    def forward(
        self, error: Tensor, decoded: Tensor, real: Tensor, last: Tensor, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of the two networks at update `step`, and metrics; 0 before disc_start.

        error: what the decoder else lowers. decoded, real: images (B, 3, H, W) as the networks
        see them. last: the weights of the decoder's last layer.
        """
        if step < self.start:
            return error.new_zeros(()), {}
        # The decoder's side: the discriminator's weights are held.
        held = {name: p.detach() for name, p in self.discriminator.named_parameters()}
        verdict = -functional_call(self.discriminator, held, (decoded,)).mean()
        weight = self.weight * adaptive_weight(error, verdict, last)
        # The discriminator's side, the hinge: beyond 1 and -1 it has nothing to gain.
        on_real, on_decoded = self.discriminator(real), self.discriminator(decoded.detach())
        hinge = (F.relu(1 - on_real).mean() + F.relu(1 + on_decoded).mean()) / 2
        metrics = {"verdict": verdict.detach(), "weight": weight, "hinge": hinge.detach()}
        return weight * verdict + hinge, metrics
