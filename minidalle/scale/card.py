"""What fits on one card, for training and for sampling?

Source: Ramesh et al. 2021, arXiv:2102.12092; the cards' data sheets.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from minidalle.config import PRESETS, Config
from minidalle.scale import footprint
from minidalle.scale.arithmetic import SCHEMES, sampling_bytes, training_bytes

GIB = 2**30
RESERVE = 0.04  # of a card's memory: the driver's, and what the allocator can not use
MOST = 4096  # no larger batch is asked for


@dataclass(frozen=True)
class Card:
    """A GPU: usable memory in GiB, dense bfloat16 or float16 TFLOP/s, memory GB/s (data sheets)."""

    name: str
    memory: float
    tflops: float
    bandwidth: float


CARDS = {
    card.name: card
    for card in (
        Card("h200", 139, 989, 4800),
        Card("h100", 79, 989, 3350),
        Card("a100", 79, 312, 2039),
        Card("v100", 15.8, 125, 900),
        Card("rtx4090", 23.6, 165, 1008),
        Card("rtx3060", 11.6, 51, 360),
    )
}


@dataclass(frozen=True)
class Fit:
    """What one stage of one preset does on one card: the largest batch, and how."""

    preset: str
    stage: str
    batch: int  # 0: does not fit
    how: str
    least: float  # GiB for a batch of one


def card(gib: float, configs: list[Config] | None = None, measure: bool = True) -> list[Fit]:
    """Say what fits on one card with `gib` GiB: training each stage, and sampling.

    configs: None takes every preset. measure: the activations of dVAE and CLIP are measured with
    fake tensors (some seconds); False leaves those stages out.
    """
    if gib <= 0:
        raise ValueError(f"a card has a positive number of GB, got {gib}")
    room, fits, found = gib * GIB * (1 - RESERVE), [], {}
    configs = configs or list(PRESETS.values())
    if measure:
        found = footprint.measure("activations", {c.preset: sizes(c) for c in configs})
    for config in configs:
        simple = found.get(config.preset, {})
        fits += [_fit_simple(config, stage, simple[stage], room) for stage in simple]
        fits += [_fit_prior(config, room), fit_sampling(config, room)]
    return fits


def sizes(config: Config) -> list[str]:
    """Return the overrides of sizes that turn the preset into `config`."""
    base = PRESETS[config.preset]
    return [
        f"{section}.{name}={value}"
        for section in ("data", "tokenizer", "dvae", "dalle", "clip")
        for name, value in vars(getattr(config, section)).items()
        if value != getattr(getattr(base, section), name)
    ]


def _largest(room: float, need: Callable[[int], float]) -> int:
    """The largest batch, up to MOST, whose bytes fit; 0 where one does not."""
    low, high = 0, MOST + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if need(middle) <= room else (low, middle)
    return low


def _fit_simple(config: Config, stage: str, measured: dict[str, int], room: float) -> Fit:
    def need(n: int) -> float:
        return 22 * measured["parameters"] + 1.5 * n * measured["example"]  # 1.5: passing gradients

    how = "float32 AdamW, bfloat16 compute"
    return Fit(config.preset, f"train {stage}", _largest(room, need), how, need(1) / GIB)


def _fit_prior(config: Config, room: float) -> Fit:
    options = []
    for scheme in SCHEMES:
        for checkpointing in (False, True):
            c = replace(config.dalle, checkpointing=checkpointing)

            def need(n: int, c=c, scheme=scheme) -> int:
                return sum(training_bytes(c, n, scheme=scheme).values())

            how = scheme.name + (", checkpointing" if checkpointing else "")
            options.append((_largest(room, need), how, need(1) / GIB))
            if options[-1][0]:
                return Fit(config.preset, "train dalle", *options[-1])
    return Fit(config.preset, "train dalle", *min(options, key=lambda option: option[2]))


def fit_sampling(config: Config, room: float) -> Fit:
    """Return how many pictures of one caption are drawn at once in `room` bytes."""

    def need(n: int) -> int:
        return sum(sampling_bytes(config.dalle, n).values())

    how = "bfloat16, windowed cache, one caption"
    return Fit(config.preset, "sample", _largest(room, need), how, need(1) / GIB)


def card_table(config: Config | None, gib: float) -> str:
    """Return what fits on a card of `gib` GiB as text; config None shows every preset."""
    configs = [config] if config is not None else None
    lines = [f"on a card of {gib:g} GB:  (batch 0: does not fit; 'least' is GiB for a batch of 1)"]
    lines.append(f"{'preset':<8}{'what':<14}{'batch':>6}{'least':>9}  how")
    for fit in card(gib, configs):
        more = "+" if fit.batch == MOST else ""
        lines.append(
            f"{fit.preset:<8}{fit.stage:<14}{f'{fit.batch}{more}':>6}{fit.least:>9.2f}  {fit.how}"
        )
    return "\n".join(lines)
