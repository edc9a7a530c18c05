"""Which class builds which part of a configuration; models built, and models read from files.

Source: this project.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from minidalle.attention import masks_are_constants
from minidalle.clip import CLIP, ResidualAttentionBlock
from minidalle.config import CLIPConfig, Config, DALLEConfig, DVAEConfig, from_json
from minidalle.dalle import DALLE
from minidalle.dvae import DiscreteVAE, Encoder
from minidalle.files import CheckpointError, load_tensors
from minidalle.transformer import Block

CLASSES = {DVAEConfig: DiscreteVAE, DALLEConfig: DALLE, CLIPConfig: CLIP}


def make(config: Config, stage: str, **options) -> nn.Module:
    """Make the model of a stage: 'dvae', 'dalle' or 'clip'."""
    part = getattr(config, stage)
    return CLASSES[type(part)](part, **options)


def build(config: Config, stage: str) -> nn.Module:
    """Make the untrained model of a stage; its weights depend on config.seed alone."""
    torch.manual_seed(config.seed)
    model = make(config, stage, **({"seed": config.seed} if stage == "dalle" else {}))
    if stage == "dvae":
        model = model.to(memory_format=torch.channels_last)
    if getattr(config, f"train_{stage}").compile:
        fuse(model)
    return model


def fuse(model: nn.Module) -> None:
    """Let torch.compile fuse each block of a model into few kernels, in place; names stay.

    Blocks alike share one compilation. Call it before a model is sharded.
    """
    from minidalle.attention.flex import allow_kernels  # imports half of torch.compile

    allow_kernels()
    masks_are_constants()
    for part in model.modules():
        if isinstance(part, (Block, ResidualAttentionBlock, Encoder)):
            part.compile(dynamic=False)
    if isinstance(model, DiscreteVAE):  # its decoder is entered behind the first convolution
        model.decode_vectors = torch.compile(model.decode_vectors, dynamic=False)


def read_model(folder: str | Path) -> tuple[dict[str, Tensor], Config]:
    """Return the weights of a finished stage, on the CPU, and the configuration that made it.

    Raises FileNotFoundError where nothing was saved, CheckpointError where a file is damaged.
    """
    folder = Path(folder)
    for name in ("model.safetensors", "config.json"):
        if not (folder / name).exists():
            raise FileNotFoundError(f"no {name} in {folder}: train this stage first")
    try:
        config = from_json((folder / "config.json").read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{folder / 'config.json'}: {error}") from error
    return load_tensors(folder / "model.safetensors")[0], config


def load_model(folder: str | Path, device: str | torch.device = "cpu") -> nn.Module:
    """Return the finished model in `folder`, named after its stage, in evaluation mode.

    Errors as `read_model`.
    """
    weights, config = read_model(folder)
    model = make(config, Path(folder).name)
    model.load_state_dict(weights)
    return model.to(device).eval()
