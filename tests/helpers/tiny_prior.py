"""Small priors whose every path matters, and captions and batches for them."""

import torch
from torch import nn

from minidalle.config import DALLEConfig
from minidalle.tokenizer import PAD

TINY = DALLEConfig(
    text_vocab=512, text_len=32, image_vocab=256, grid=8, n_layers=2, n_heads=2, head_dim=16,
    kernel=3,
)  # fmt: skip
SMALL = DALLEConfig(
    text_vocab=20, text_len=6, image_vocab=12, grid=4, n_layers=5, n_heads=2, head_dim=8, kernel=3
)


def batch(n: int = 4, c: DALLEConfig = TINY) -> dict[str, torch.Tensor]:
    """Random captions without pads and image tokens."""
    g = torch.Generator().manual_seed(1)
    return {
        "text": torch.randint(0, c.text_vocab, (n, c.text_len - 1), generator=g),
        "tokens": torch.randint(0, c.image_vocab, (n, c.grid**2), generator=g),
    }


def shake(model: nn.Module) -> nn.Module:
    """Make the weights of a model large enough that every path matters."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Counted:
    """A backend of torch.compile that runs its graphs as they are, and keeps them."""

    def __init__(self):
        self.graphs = []

    def __call__(self, graph, inputs):
        self.graphs.append(graph)
        return graph.forward


def captions(*ids: list[int]) -> torch.Tensor:
    """Captions (B, 5), padded."""
    return torch.tensor([[*row, *[PAD] * (5 - len(row))] for row in ids])
