"""Which class builds which part of a configuration; models built, and models read from files.

Source: this project.
"""

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from minidalle.clip import CLIP, ResidualAttentionBlock
from minidalle.codebooks.palette import Palette
from minidalle.codebooks.vqgan import VQGAN
from minidalle.codebooks.vqvae import VQVAE
from minidalle.compiled import fuse
from minidalle.config import CHOICES, PRESETS, CLIPConfig, Config, from_json
from minidalle.dalle import DALLE
from minidalle.dvae import DiscreteVAE, Encoder
from minidalle.files import CheckpointError, digest, load_tensors, read_metadata
from minidalle.priors.mini import DecoderBlock, EncoderBlock, Mini
from minidalle.tokenizer import BPETokenizer
from minidalle.transformer import Block

NAMED = dict(dvae=DiscreteVAE, vqvae=VQVAE, vqgan=VQGAN, palette=Palette, dalle=DALLE, mini=Mini)
CLASSES = {kind: NAMED[name] for _, kinds in CHOICES.values() for name, kind in kinds.items()}
CLASSES |= {CLIPConfig: CLIP}
BLOCKS = (Block, ResidualAttentionBlock, Encoder, EncoderBlock, DecoderBlock)


class MissingStage(ValueError):
    """A stage needs the product of an earlier one; the message names the command to run."""


def product(stage: str) -> str:
    """The file that a finished stage leaves in its folder."""
    return "tokenizer.json" if stage == "tokenizer" else "model.safetensors"


def make(part, **options) -> nn.Module:
    """Make the model that a section of a configuration describes."""
    return CLASSES[type(part)](part, **options)


def build(config: Config, stage: str) -> nn.Module:
    """Make the untrained model of a stage; its weights depend on config.seed alone."""
    torch.manual_seed(config.seed)
    model = make(getattr(config, stage), **({"seed": config.seed} if stage == "dalle" else {}))
    if stage == "dvae":
        model = model.to(memory_format=torch.channels_last)
    if getattr(config, f"train_{stage}").compile:
        fuse(model, BLOCKS)
    return model


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


def digests(run: str | Path, stages: Iterable[str]) -> dict[str, str]:
    """Return the digests of what those stages made that are there, by stage."""
    paths = {name: Path(run) / name / product(name) for name in stages}
    return {name: digest(path) for name, path in paths.items() if path.is_file()}


def check_made_from(run: str | Path, stage: str) -> None:
    """Raise MissingStage where what a finished stage was made from has been made anew since.

    Stages whose earlier ones are not there, or that do not say what they were made from, pass.
    """
    path = Path(run) / stage / product(stage)
    if stage == "tokenizer":
        return
    made_from = json.loads(read_metadata(path).get("made_from", "{}"))
    now = digests(run, made_from)
    if stale := [name for name, value in now.items() if made_from[name] != value]:
        raise MissingStage(
            f"the {stage} in {run} is stale: {' and '.join(stale)} was made anew since. Train "
            f"it again: minidalle {stage} {_where(Path(run))} --fresh"
        )


def _where(run: Path) -> str:
    return f"--preset {run.name}" if run.name in PRESETS else f"--run {run}"


def load(run: str | Path, stage: str, device: str | torch.device = "cpu"):
    """Load the product of a finished stage of a run: a BPETokenizer, or a model for evaluation.

    CLIP comes with the run's tokenizer. Raises MissingStage, with the command to run, where it is
    not there or stale; other errors as `read_model`.
    """
    run = Path(run)
    if not (run / stage / product(stage)).is_file():
        raise MissingStage(
            f"no trained {stage} in {run}: train it first with `minidalle {stage} {_where(run)}`"
        )
    check_made_from(run, stage)
    if stage == "tokenizer":
        return BPETokenizer.load(run / stage / product(stage))
    weights, config = read_model(run / stage)
    if bad := [name for name, value in weights.items() if not value.isfinite().all()]:
        raise CheckpointError(f"{run / stage}: {bad[0]} is not finite; train the stage again")
    model = make(getattr(config, stage))
    model.load_state_dict(weights)
    if stage == "clip":
        model.tokenizer = load(run, "tokenizer")
    return model.to(device).eval()
