"""A stack of residual blocks whose attention masks follow the paper's schedule.

B batch, T states, D width, H heads, K head width.
Source: Ramesh et al. 2021, arXiv:2102.12092, appendix B.1 and figure 4.
"""

import hashlib
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from minidalle.attention import attend
from minidalle.config import DALLEConfig


def layer_kinds(n_layers: int) -> list[str]:
    """Return the mask of each layer: row, column, row, row, …; the last one is conv.

    Raises ValueError unless n_layers is positive.
    """
    if n_layers < 1:
        raise ValueError(f"n_layers must be positive, got {n_layers}")
    kinds = ["column" if i % 4 == 1 else "row" for i in range(n_layers)]
    return [*kinds[:-1], "conv"]


class LayerNorm(nn.LayerNorm):
    """Layer norm in the type of x (figure 4: float32), also where its gain came in 16 bits."""

    def forward(self, x: Tensor) -> Tensor:
        """x (..., D) -> (..., D)."""
        gain, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        return F.layer_norm(x, self.normalized_shape, gain, bias, self.eps)


class Attention(nn.Module):
    """One attention resblock without its residual: layer norm, then masked attention."""

    def __init__(self, config: DALLEConfig, kind: str):
        super().__init__()
        self.config, self.kind = config, kind
        self.norm = LayerNorm(config.width)
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.out = nn.Linear(config.width, config.width)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values of x (B, T, D), each (B, H, T, K)."""
        qkv = self.qkv(self.norm(x)).unflatten(-1, (3, self.config.n_heads, -1))  # (B, T, 3, H, K)
        return qkv.permute(2, 0, 3, 1, 4).unbind(0)

    def merge(self, heads: Tensor) -> Tensor:
        """Return the branch's output (B, T, D) from what the heads saw (B, H, T, K)."""
        return self.out(heads.transpose(1, 2).flatten(2))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, D) -> (B, T, D)."""
        c = self.config
        q, k, v = self.project(x)
        return self.merge(attend(q, k, v, self.kind, c.text_len, c.grid, c.kernel, c.attention))


class MLP(nn.Module):
    """One MLP resblock without its residual: layer norm, four times the width, GELU."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, D) -> (B, T, D)."""
        return self.down(F.gelu(self.up(self.norm(x))))


class Block(nn.Module):
    """One layer: two resblocks, each added to an identity path that nothing else touches."""

    def __init__(self, config: DALLEConfig, kind: str):
        super().__init__()
        self.attention = Attention(config, kind)
        self.mlp = MLP(config.width)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, D) -> (B, T, D)."""
        x = x + self.attention(x)
        return x + self.mlp(x)


class Transformer(nn.Module):
    """The blocks and a final layer norm."""

    def __init__(self, config: DALLEConfig):
        super().__init__()
        self.checkpointing = config.checkpointing
        self.blocks = nn.ModuleList(Block(config, kind) for kind in layer_kinds(config.n_layers))
        self.norm = LayerNorm(config.width)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, D) -> (B, T, D)."""
        for block in self.blocks:
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return self.norm(x)


def initial_value(
    name: str, shape: torch.Size, seed: int, n_layers: int, residual: float
) -> Tensor:
    """Return the first value of the parameter called `name`, float32 on the CPU.

    Norms start as the identity, biases at 0, all else as normal(0, 0.02), with the two outputs
    onto the identity path scaled by residual/sqrt(2 n_layers). The draw depends on (seed, name)
    alone: it is the same in any order, for any number of processes.
    """
    module, _, leaf = name.rpartition(".")
    if leaf == "bias":
        return torch.zeros(shape)
    if module.endswith("norm"):
        return torch.ones(shape)
    is_output = module.endswith(("attention.out", "mlp.down"))
    std = 0.02 * residual / math.sqrt(2 * n_layers) if is_output else 0.02
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
    return torch.empty(shape).normal_(0, std, generator=generator)


@torch.no_grad()
def init_weights(model: nn.Module, seed: int = 0) -> None:
    """Fill every parameter of a model that has `config.n_layers` with its `initial_value`."""
    for name, parameter in model.named_parameters():
        c = model.config
        parameter.copy_(initial_value(name, parameter.shape, seed, c.n_layers, c.residual_init))
