"""One training step (forward, backward, Adam) beside dalle-pytorch and plain nn.TransformerEncoder.

Run: python benchmarks/train_step.py [--text 32 --grid 8 --batch 32 --bfloat16]
Peers: see benchmarks/peers.py. All models have the same width, depth, heads and lengths.
dalle-pytorch's MLP is a gated one with 12 d**2 weights where ours and torch's have 8 d**2; the
last column divides each time by the number of weights in matrices.
Target: at least 1.5x dalle-pytorch at 256+1024 tokens.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from peers import DALLE_PYTORCH, alternate, dalle_pytorch
from torch import Tensor, nn

from minidalle.config import DALLEConfig
from minidalle.dalle import DALLE

MIX = ("axial_row", "axial_col", "axial_row", "conv_like")  # its nearest to the paper's schedule
PEERS = {
    "dalle-pytorch, as it comes (full)": {},
    "dalle-pytorch, row column row conv": dict(attn_types=MIX),
    "dalle-pytorch, full, plain positions": dict(rotary_emb=False, shift_tokens=False),
}


class Encoder(nn.Module):
    """Our embeddings and heads around torch's own encoder, which attends to all earlier states."""

    def __init__(self, config: DALLEConfig):
        super().__init__()
        self.ours = DALLE(config)
        self.ours.transformer = nn.Identity()
        layer = nn.TransformerEncoderLayer(
            config.width, config.n_heads, 4 * config.width, 0.0, "gelu",
            batch_first=True, norm_first=True,
        )  # fmt: skip
        norm = nn.LayerNorm(config.width)
        self.encoder = nn.TransformerEncoder(layer, config.n_layers, norm, False)
        length = config.text_len + config.grid**2
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        self.register_buffer("mask", mask, persistent=False)
        self.ours.transformer.forward = lambda x: self.encoder(x, self.mask, is_causal=True)

    def loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict]:
        return self.ours.loss(batch)


def build(c: DALLEConfig, device: str) -> dict[str, nn.Module]:
    """Return ours, torch's and, where it is installed, dalle-pytorch's models by name."""
    models: dict[str, nn.Module] = {
        "minidalle": DALLE(c),
        "minidalle, masks multiplied in": DALLE(replace(c, attention="dense")),
        "nn.TransformerEncoder (full)": Encoder(c),
    }
    for name, options in PEERS.items():
        peer = dalle_pytorch(c, **options)
        if peer is None:
            print(DALLE_PYTORCH)
            break
        models[name] = peer
    return {name: model.to(device) for name, model in models.items()}


def step(model: nn.Module, loss: Callable[[], Tensor], dtype: torch.dtype) -> Callable[[], None]:
    """Return a function that makes one update, with products in dtype."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, foreach=True)
    device = next(model.parameters()).device.type

    def run() -> None:
        with torch.autocast(device, dtype, enabled=dtype == torch.bfloat16):
            value = loss()
        value.backward()
        optimiser.step()
        optimiser.zero_grad()

    return run


def first(function: Callable, *args: object) -> object:
    """Return the first of several results."""
    return function(*args)[0]


def n_weights(model: nn.Module) -> int:
    """Return the number of weights in matrices that multiply: no embeddings, norms or biases."""
    linear = (m for m in model.modules() if isinstance(m, nn.Linear | nn.MultiheadAttention))
    return sum(p.numel() for m in linear for p in m.parameters(recurse=False) if p.ndim == 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in (("layers", 4), ("heads", 4), ("head_dim", 64), ("text", 256),
                        ("grid", 32), ("batch", 1), ("rounds", 3)):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--bfloat16", action="store_true")
    a = parser.parse_args()
    c = DALLEConfig(
        text_vocab=2048, text_len=a.text, image_vocab=1024, grid=a.grid, n_layers=a.layers,
        n_heads=a.heads, head_dim=a.head_dim, kernel=11 if a.grid == 32 else 3,
    )  # fmt: skip
    device = "cuda" if torch.cuda.is_available() else "cpu"
    text = torch.randint(1, c.text_vocab, (a.batch, c.text_len - 1), device=device)
    image = torch.randint(c.image_vocab, (a.batch, c.grid**2), device=device)
    models, cases = build(c, device), {}
    for name, model in models.items():
        if name.startswith("dalle-pytorch"):
            wide = F.pad(text, (0, 1), value=1)  # it counts start-of-text apart
            loss = partial(model, wide, image, return_loss=True)
        else:
            loss = partial(first, model.loss, {"text": text, "tokens": image})
        cases[name] = step(model, loss, torch.bfloat16 if a.bfloat16 else torch.float32)
    best = alternate(cases, a.rounds)
    print(
        f"{a.text}+{a.grid**2} tokens, batch {a.batch}, {a.layers} layers x {c.width}, "
        f"{'bfloat16' if a.bfloat16 else 'float32'}, {device}, "
        f"{torch.get_num_threads()} thread(s), torch {torch.__version__}"
    )
    ours = best["minidalle"] / n_weights(models["minidalle"])
    for name, seconds in best.items():
        per_weight = seconds / n_weights(models[name]) / ours
        ratio = seconds / best["minidalle"]
        print(f"{name:38} {1e3 * seconds:8.0f} ms  x{ratio:5.2f}  per weight x{per_weight:5.2f}")


if __name__ == "__main__":
    main()
