"""What every notebook starts with: calm threads, the shipped models of the toy world, the map."""

import re
from pathlib import Path

import torch
from torch import nn

from minidalle.models import load
from minidalle.stages import SHIPPED as ALL_SHIPPED
from minidalle.stages import use_half_the_cores
from minidalle.tokenizer import BPETokenizer

SHIPPED = ALL_SHIPPED / "toy"
MAP = Path(__file__).resolve().parents[1] / "docs" / "figures" / "map.svg"


def start(seed: int = 0) -> None:
    """Seed torch and use half the cores."""
    torch.manual_seed(seed)
    use_half_the_cores()


def shipped(stage: str) -> BPETokenizer | nn.Module:
    """Load what this repository trained on the toy world, on the CPU, ready to use.

    stage: 'tokenizer', 'dvae', 'dalle' or 'clip'. Raises ValueError where the file is missing.
    """
    return load(SHIPPED, stage)


def show_map(stage: str = "all") -> None:
    """Show the map of DALL-E (docs/figures/map.svg) with one stage lit, or 'all'.

    Raises ValueError, naming the stages, for one that is not on the map.
    """
    from IPython.display import SVG, display  # only notebooks have it

    display(SVG(lit_map(stage)))


def lit_map(stage: str) -> str:
    """Return the map as SVG text in which the parts of class `stage` also have the class 'lit'."""
    text = MAP.read_text(encoding="utf-8")
    stages = list(dict.fromkeys(re.findall(r'class="stage (\w+)"', text)))
    if stage not in (*stages, "all"):
        raise ValueError(f"unknown stage {stage!r}; choose from {', '.join(stages)}, all")
    which = r"\w+" if stage == "all" else stage
    return re.sub(rf'class="stage ({which})"', r'class="stage \1 lit"', text)
