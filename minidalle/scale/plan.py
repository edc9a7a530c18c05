"""What fits on a cluster, how long does it take, and what should be changed?

Arithmetic (arithmetic.py), checked against fake tensors run through the real model (footprint.py).

Source: Ramesh et al. 2021, arXiv:2102.12092, section 2.4 and appendix E.
"""

from dataclasses import dataclass, replace

from minidalle.config import Config
from minidalle.scale import footprint
from minidalle.scale.arithmetic import (
    SCHEMES,
    Scheme,
    forward_flops,
    full_cache_bytes,
    network_bytes,
    parameters,
    sampling_bytes,
    states,
    training_bytes,
    training_flops,
)
from minidalle.scale.card import CARDS, GIB, MOST, RESERVE, Card, card_table, fit_sampling, sizes
from minidalle.scale.powersgd import paper_rank, saving

__all__ = ["Plan", "card_table", "plan", "table"]

PAPER_UPDATES = 430_000


@dataclass(frozen=True)
class Plan:
    """The answer to one question. Bytes are per GPU, times in seconds, operations per update."""

    config: Config
    gpus: int
    per_node: int
    batch: int
    card: Card
    utilisation: float
    parts: int  # how many parts a GPU's share of the batch is computed in
    parameters: dict[str, int]
    flops: int  # the model's, forward and backward
    work: int  # the machine's, with what checkpointing repeats
    memory: dict[str, int]
    network: int  # gradient bytes per GPU and update between nodes
    network_compressed: int
    seconds: float  # one update
    days: float  # for the configuration's updates
    paper_days: float  # for the paper's 430,000
    advice: list[str]
    tracked: dict[str, int] | None  # torch's tracker over a few layers, and arithmetic for them

    @property
    def fits(self) -> bool:
        """Does an update fit into the card's memory?"""
        return sum(self.memory.values()) <= self.card.memory * GIB * (1 - RESERVE)


def plan(
    config: Config,
    gpus: int = 8,
    batch: int | None = None,
    card: str = "h200",
    per_node: int = 8,
    utilisation: float = 0.4,
    compress: bool = False,
    check: bool = True,
) -> Plan:
    """Work out training the prior of `config` on `gpus` cards of one kind, per_node to a machine.

    batch: pairs per update over all GPUs; None is the configuration's. utilisation: model FLOPs
    per second over the card's peak. compress: count PowerSGD's buffers. check: also let torch's
    memory tracker watch fake tensors (some seconds).
    Raises ValueError where numbers do not divide, or the card is unknown.
    """
    c, batch = config.dalle, config.train_dalle.batch_size if batch is None else batch
    if card not in CARDS:
        raise ValueError(f"unknown card {card!r}; choose from {', '.join(CARDS)}")
    per_node = min(per_node, gpus)
    if gpus < 1 or batch < 1 or gpus % per_node or batch % gpus:
        raise ValueError(
            f"batch={batch} must divide among gpus={gpus}, and those into nodes of {per_node}"
        )
    share, precision = batch // gpus, config.train_dalle.precision

    def memory_for(size: int) -> dict[str, int]:
        return training_bytes(c, size, per_node, SCHEMES[0], precision, compress)

    parts = _parts(share, lambda size: sum(memory_for(size).values()), CARDS[card])
    flops, work = training_flops(c) * batch, training_flops(c, recompute=True) * batch
    seconds = flops / (gpus * CARDS[card].tflops * 1e12 * utilisation)
    rank = paper_rank(c.width)
    made = Plan(
        config, gpus, per_node, batch, CARDS[card], utilisation, parts, parameters(c), flops, work,
        memory_for(share // parts), network_bytes(c, per_node), network_bytes(c, per_node, rank),
        seconds, seconds * config.train_dalle.steps / 86400, seconds * PAPER_UPDATES / 86400, [],
        _track(config, share // parts, per_node) if check and per_node > 1 else None,
    )  # fmt: skip
    return replace(made, advice=_advice(made))


def _parts(share: int, need, card: Card) -> int:
    """The fewest equal parts of a share of the batch that fit; all single pairs if none does."""
    for parts in range(1, share + 1):
        if share % parts == 0 and need(share // parts) <= card.memory * GIB * (1 - RESERVE):
            return parts
    return share


def _track(config: Config, batch: int, slices: int) -> dict[str, int] | None:
    """Bytes of the worst moment of a few layers, by torch's tracker and by our arithmetic."""
    few = replace(config.dalle, n_layers=footprint.LAYERS)
    scheme = Scheme("", moments=0, average=0)  # the tracker watches no optimiser
    ours = sum(training_bytes(few, batch, slices, scheme).values())
    question = {"preset": config.preset, "overrides": sizes(config)}
    try:
        found = footprint.measure("tracked", question | {"batch": batch, "slices": slices})
    except RuntimeError:
        return None  # the tracker is no public part of torch: a later version may lack it
    return {"tracked": found["total"], "arithmetic": ours}


def _advice(p: Plan) -> list[str]:
    """What to change where it does not fit, and what to mind where it does."""
    c, lines = p.config.dalle, []
    if p.parts > 1:
        lines.append(f"accumulate: train_dalle.accumulate={p.parts}")
    if not p.fits:
        if not c.checkpointing:
            lines.append("recompute activations: dalle.checkpointing=true")
        if p.per_node < 8:
            lines.append(f"more GPUs per machine: weights and moments divide by {p.per_node} now")
        for scheme in SCHEMES[1:]:
            need = training_bytes(c, 1, p.per_node, scheme, p.config.train_dalle.precision)
            if sum(need.values()) <= p.card.memory * GIB * (1 - RESERVE):
                lines.append(f"{scheme.name}: {sum(need.values()) / GIB:.1f} GiB with one pair")
                break
        else:
            lines.append("no scheme fits this card: fewer layers or heads, or a larger card")
    if p.gpus > p.per_node:
        saved = 1 - p.network_compressed / p.network
        lines.append(f"between nodes, --compress -1 sends {saved:.0%} fewer gradient bytes")
    return lines


def table(p: Plan) -> str:
    """Return a plan as text for the terminal."""
    c, total = p.config.dalle, sum(p.parameters.values())
    forward = forward_flops(c)
    need = sum(p.memory.values())
    lines = [
        f"{p.config.preset}: {c.n_layers} layers, width {c.width}, {states(c)} states, on {p.gpus} "
        f"× {p.card.name} ({p.per_node} per machine), batch {p.batch}",
        "",
        "parameters",
        *(f"  {name:<30}{n:>18,}" for name, n in p.parameters.items()),
        f"  {'all':<30}{total:>18,}",
        "floating-point operations",
        *(f"  {name + ', forward, one pair':<30}{n:>18.3e}" for name, n in forward.items()),
        f"  {'one update, forward+backward':<30}{p.flops:>18.3e}",
        f"  {'the machine, with recompute':<30}{p.work:>18.3e}",
        f"memory per GPU, GiB ({p.batch // p.gpus // p.parts} pairs at once)",
        *(f"  {name:<30}{n / GIB:>18.2f}" for name, n in p.memory.items() if n),
        f"  {'all':<30}{need / GIB:>18.2f}  "
        + (f"fits {p.card.memory:g}" if p.fits else f"DOES NOT FIT {p.card.memory:g}"),
        *(_network_lines(p) if p.gpus > p.per_node else ()),
        f"time, at {p.utilisation:.0%} of {p.card.tflops:g} TFLOP/s",
        f"  {'one update, s':<30}{p.seconds:>18.3g}",
        f"  {f'{p.config.train_dalle.steps:,} updates, days':<30}{p.days:>18.3g}",
    ]
    if p.config.train_dalle.steps != PAPER_UPDATES:
        lines.append(f"  {f'{PAPER_UPDATES:,} updates, days':<30}{p.paper_days:>18.3g}")
    if p.tracked:
        ours, theirs = p.tracked["arithmetic"] / GIB, p.tracked["tracked"] / GIB
        lines.append(
            f"check: {footprint.LAYERS} layers of fake tensors peak at {theirs:.2f} GiB without "
            f"moments, arithmetic says {ours:.2f}"
        )
    lines += _sampling_lines(p) + [f"to do: {line}" for line in p.advice]
    return "\n".join(lines)


def _sampling_lines(p: Plan) -> list[str]:
    """How many pictures of one caption one card draws at once; 512 is the paper's number."""
    c, fit = p.config.dalle, fit_sampling(p.config, p.card.memory * GIB * (1 - RESERVE))
    if not fit.batch:
        return [f"sampling needs {fit.least:.1f} GiB for one picture: DOES NOT FIT"]
    two, one = (sum(sampling_bytes(c, n).values()) for n in (2, 1))
    return [
        f"sampling on one card, bfloat16: {fit.batch}{'+' if fit.batch == MOST else ''} pictures "
        f"of one caption at once, 512 in {-(-512 // fit.batch)} batches",
        f"  {'each picture, GiB':<30}{(two - one) / GIB:>18.3f}"
        f"  (a cache of every state: {full_cache_bytes(c, 1) / GIB:.3f})",
    ]


def _network_lines(p: Plan) -> list[str]:
    width = p.config.dalle.width
    rank = paper_rank(width)
    return [
        "gradients between machines, per GPU and update",
        f"  {'whole, GiB':<30}{p.network / GIB:>18.2f}",
        f"  {f'PowerSGD rank {rank}, GiB':<30}{p.network_compressed / GIB:>18.2f}"
        f"  (the paper counts {saving(rank, width):.1%} of the blocks' saved)",
    ]
