"""Which class builds which part of a configuration; models built, and models read from files."""

from pathlib import Path

import torch
from torch import nn

from minidalle.attention.compiled import fuse
from minidalle.clip import CLIP, ResidualAttentionBlock
from minidalle.codebooks.palette import Palette
from minidalle.codebooks.vqgan import VQGAN
from minidalle.codebooks.vqvae import VQVAE
from minidalle.config import CHOICES, CLIPConfig, Config
from minidalle.dalle import DALLE
from minidalle.dvae import DiscreteVAE, Encoder
from minidalle.priors.mini import DecoderBlock, EncoderBlock, Mini
from minidalle.published import lpips
from minidalle.tokenizer import BPETokenizer
from minidalle.training.finished import find_product, put_weights, read_model
from minidalle.transformer import Block

NAMED = dict(dvae=DiscreteVAE, vqvae=VQVAE, vqgan=VQGAN, palette=Palette, dalle=DALLE, mini=Mini)
CLASSES = {kind: NAMED[name] for _, kinds in CHOICES.values() for name, kind in kinds.items()}
CLASSES |= {CLIPConfig: CLIP}
BLOCKS = (Block, ResidualAttentionBlock, Encoder, EncoderBlock, DecoderBlock)


def make(part, **options) -> nn.Module:
    """Make the model that a section of a configuration describes."""
    return CLASSES[type(part)](part, **options)


def build(config: Config, stage: str) -> nn.Module:
    """Make the untrained model of a stage; its weights depend on config.seed alone."""
    torch.manual_seed(config.seed)
    model = make(getattr(config, stage), **({"seed": config.seed} if stage == "dalle" else {}))
    if stage == "dvae":
        model = model.to(memory_format=torch.channels_last)
        if folder := getattr(config.dvae, "lpips", ""):
            model.perceptual = lpips.load(folder).forward  # as a function: no part of the model
    if getattr(config, f"train_{stage}").compile:
        fuse(model, BLOCKS)
    return model


def load(run: str | Path, stage: str, device: str | torch.device = "cpu"):
    """Load the product of a finished stage of a run: a BPETokenizer, or a model for evaluation.

    CLIP comes with the run's tokenizer. Raises MissingStage, with the command to run, where it is
    not there or stale; other errors as `read_model`.
    """
    path = find_product(run, stage)
    if stage == "tokenizer":
        return BPETokenizer.load(path)
    weights, config = read_model(path.parent)
    model = make(getattr(config, stage))
    put_weights(model, weights, path.parent)
    if stage == "clip":
        model.tokenizer = load(run, "tokenizer")
    return model.to(device).eval()
