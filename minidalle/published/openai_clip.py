"""Read OpenAI's CLIP, ViT-B/32 or ViT-B/16, as a reranker that brings its own tokenizer.

The file is the released TorchScript archive (ViT-B-32.pt), or the same tensors as a state dict or
as safetensors (what open_clip publishes). No code in it is run.
Source: Radford et al. 2021, arXiv:2103.00020; github.com/openai/CLIP, clip/model.py.
"""

from pathlib import Path

import torch
from torch import Tensor

from minidalle.clip import CLIP
from minidalle.config import CLIPConfig
from minidalle.published.clip_tokenizer import CLIPTokenizer
from minidalle.published.weights import Parts, fill, pick, read_state

B32, B16 = CLIPConfig(), CLIPConfig(patch_size=16)
FILES = ("ViT-B-32.pt", "ViT-B-16.pt", "open_clip_model.safetensors")
MERGES = ("bpe_simple_vocab_16e6.txt.gz", "merges.txt")
NUMBERS = ("input_resolution", "context_length", "vocab_size")  # in the archive, no parameters


def sizes(state: dict[str, Tensor], path: Path) -> CLIPConfig:
    """Read the configuration off the shapes; heads are 64 wide in every released model.

    Raises ValueError where it is no CLIP, or one whose image tower is no transformer.
    """
    try:
        patches, width = state["visual.positional_embedding"].shape
        patch = state["visual.conv1.weight"].shape[-1]
        text_width, embed_dim = state["text_projection"].shape
        context = len(state["positional_embedding"])
        vocab = len(state["token_embedding.weight"])
    except KeyError as error:
        raise ValueError(f"{path} lacks {error.args[0]}: only CLIP's ViTs are read") from None
    layers = [
        len({name[len(tower) :].split(".")[0] for name in state if name.startswith(tower)})
        for tower in ("visual.transformer.resblocks.", "transformer.resblocks.")
    ]
    return CLIPConfig(
        image_size=int((patches - 1) ** 0.5) * patch, patch_size=patch, vision_width=width,
        vision_layers=layers[0], vision_heads=max(width // 64, 1), vocab_size=vocab,
        context_length=context, text_width=text_width, text_layers=layers[1],
        text_heads=max(text_width // 64, 1), embed_dim=embed_dim,
    )  # fmt: skip


def make(config: CLIPConfig = B32) -> Parts:
    """Make the model without weights."""
    return Parts(reranker=CLIP(config))


def load(folder: str | Path, dtype: torch.dtype = torch.float32) -> Parts:
    """Load CLIP from a folder that holds one of FILES and one of MERGES, always in float32.

    Raises FileNotFoundError, or ValueError that names file and key.
    """
    path = pick(folder, FILES)
    state = read_state(path, ignore=NUMBERS)
    model = fill(CLIP(sizes(state, path)), state, path)
    tokenizer = CLIPTokenizer.load(merges := pick(folder, MERGES))
    if tokenizer.vocab_size != model.config.vocab_size:
        found, want = tokenizer.vocab_size, model.config.vocab_size
        raise ValueError(f"{merges} makes {found} ids, but {path.name} embeds {want}")
    model.tokenizer = tokenizer
    return Parts(reranker=model)
