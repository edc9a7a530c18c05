"""What the prior's benchmarks share: fair timing, and peers that import without their baggage.

The peers install with `pip install --no-deps dalle-pytorch==1.6.6 einops rotary-embedding-torch
axial_positional_embedding min-dalle`. What else they import (VQGAN, OmegaConf, …) is replaced by
empty modules here: nothing of it runs in these benchmarks.
"""

import importlib
import importlib.util
import sys
import time
import types
from collections.abc import Callable

import torch
from torch import nn

DALLE_PYTORCH = "dalle-pytorch is not installed: its rows are left out"
MIN_DALLE = "min-dalle is not installed: its rows are left out"


def alternate(
    cases: dict[str, Callable[[], None]], rounds: int, warm_up: bool = True
) -> dict[str, float]:
    """Run the cases in turn `rounds` times, after one round to warm up.

    Returns the least seconds of each: processor seconds on a CPU (a neighbour's load does not
    count), wall seconds on a GPU.
    """
    gpu = torch.cuda.is_available()
    best = dict.fromkeys(cases, float("inf"))
    for turn in range(rounds + warm_up):
        for name, run in cases.items():
            if gpu:
                torch.cuda.synchronize()
            start = time.perf_counter() if gpu else time.process_time()
            run()
            if gpu:
                torch.cuda.synchronize()
            took = (time.perf_counter() if gpu else time.process_time()) - start
            if turn >= warm_up:
                best[name] = min(best[name], took)
    return best


_STUBS: set[str] = set()


def _stub(name: str, **contents: object) -> None:
    """Put an empty module in the place of one that is not installed."""
    root = name.split(".")[0]
    if root in _STUBS or importlib.util.find_spec(root) is None:
        _STUBS.add(root)
        module = sys.modules[name] = types.ModuleType(name)
        module.__path__ = []
        vars(module).update(contents)


def dalle_pytorch_package() -> types.ModuleType | None:
    """Import dalle-pytorch's models, or return None without it."""
    if importlib.util.find_spec("dalle_pytorch") is None:
        return None
    empty = type("Empty", (), {})
    _stub("pkg_resources", get_distribution=lambda name: types.SimpleNamespace(version="0"))
    _stub("omegaconf", OmegaConf=empty)
    _STUBS.add("taming")  # even where it is installed: it wants Lightning
    _stub("taming")
    _stub("taming.models")
    _stub("taming.models.vqgan", VQModel=empty, GumbelVQ=empty)
    for name in ("requests", "yaml", "PIL", "packaging", "packaging.version"):
        _stub(name, version=None)
    return importlib.import_module("dalle_pytorch.dalle_pytorch")


def dalle_pytorch(config, **options) -> nn.Module | None:
    """Build dalle-pytorch's DALLE at the sizes of a DALLEConfig, or return None without it."""
    peer = dalle_pytorch_package()
    if peer is None:
        return None
    vae = peer.DiscreteVAE(
        image_size=2 * config.grid, num_layers=1, num_tokens=config.image_vocab,
        codebook_dim=8, hidden_dim=8,
    )  # fmt: skip
    return peer.DALLE(
        dim=config.width, vae=vae, num_text_tokens=config.text_vocab, depth=config.n_layers,
        text_seq_len=config.text_len, heads=config.n_heads, dim_head=config.head_dim, **options,
    )  # fmt: skip


def _min_dalle(module: str) -> types.ModuleType | None:
    """Import one of min-dalle's models, or return None without it."""
    spec = sys.modules.get("min_dalle") or importlib.util.find_spec("min_dalle")
    if spec is None:
        return None
    if "min_dalle" not in sys.modules:
        # The package's own __init__ switches gradients off everywhere and wants its tokenizer.
        package = sys.modules["min_dalle"] = types.ModuleType("min_dalle")
        package.__path__ = list(spec.submodule_search_locations)
    return importlib.import_module(f"min_dalle.models.{module}")


def min_dalle_halves(c, device: str) -> tuple[nn.Module, nn.Module] | None:
    """Build min-dalle's encoder and decoder at the sizes of a MiniConfig, or return None."""
    encoder, decoder = map(_min_dalle, ("dalle_bart_encoder", "dalle_bart_decoder"))
    if encoder is None or decoder is None:
        return None
    with torch.device(device):
        return (
            encoder.DalleBartEncoder(
                c.n_layers, c.width, c.n_heads, c.text_vocab, c.text_len, c.glu_width, device
            ),
            decoder.DalleBartDecoder(
                c.image_vocab, c.width, c.n_heads, c.glu_width, c.n_layers, device
            ),
        )


def min_dalle_decoder(width: int, layers: int, heads: int, vocab: int) -> nn.Module | None:
    """Build min-dalle's decoder (always 16 x 16 tokens), or return None without it."""
    peer = _min_dalle("dalle_bart_decoder")
    if peer is None:
        return None
    # Three matrices of its gated MLP against our two: 8/3 of the width make 8 width**2 each.
    return peer.DalleBartDecoder(vocab, width, heads, 8 * width // 3, layers, "cpu")
