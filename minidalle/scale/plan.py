"""What fits on GPUs, how long does it take, and what should be changed? Arithmetic; nothing runs.

Source: Ramesh et al. 2021, arXiv:2102.12092, section 2.4 and appendix E; the GPUs' data sheets.
"""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

from minidalle.config import Config
from minidalle.scale import arithmetic
from minidalle.scale.arithmetic import SCHEMES
from minidalle.scale.powersgd import paper_rank, saving

GIB = 2**30
USABLE = 0.96 * GIB  # bytes of a GPU's GiB: the driver and the allocator take the rest
PAPER_UPDATES = 430_000


class GPU(NamedTuple):
    """Memory in GiB, dense bfloat16 or float16 TFLOP/s, and watts, by the data sheet."""

    memory: float
    tflops: float
    watts: float


GPUS = {
    "h200": GPU(139, 989, 700),
    "h100": GPU(79, 989, 700),
    "a100": GPU(79, 312, 400),
    "v100": GPU(15.8, 125, 300),
    "rtx4090": GPU(23.6, 165, 450),
    "rtx3060": GPU(11.6, 51, 170),
}


@dataclass(frozen=True)
class Plan:
    """Training the prior on some GPUs of one kind, and what that takes."""

    config: Config
    gpus: int
    batch: int  # pairs per update, over all GPUs
    name: str  # of the kind of GPU
    per_node: int
    utilisation: float  # the model's operations per second over the GPU's peak
    parts: int = 1  # in which a GPU computes its pairs of the batch

    @property
    def gpu(self) -> GPU:
        """The kind of GPU."""
        return GPUS[self.name]

    @property
    def memory(self) -> dict[str, int]:
        """Bytes of one GPU, by part."""
        return prior_bytes(self.config, self.batch // self.gpus // self.parts, self.per_node)

    @property
    def fits(self) -> bool:
        """Does an update fit into a GPU's memory?"""
        return sum(self.memory.values()) <= self.gpu.memory * USABLE

    @property
    def flops(self) -> int:
        """The model's operations in one update, forward and backward."""
        return arithmetic.training_flops(self.config.dalle) * self.batch

    @property
    def seconds(self) -> float:
        """Duration of one update."""
        return self.flops / (self.gpus * self.gpu.tflops * 1e12 * self.utilisation)

    @property
    def days(self) -> float:
        """Duration of the configuration's updates."""
        return self.seconds * self.config.train_dalle.steps / 86400


def plan(
    config: Config,
    gpus: int = 8,
    batch: int | None = None,
    gpu: str = "h200",
    per_node: int = 8,
    utilisation: float = 0.4,
) -> Plan:
    """Work out training the prior of `config` on `gpus` GPUs of one kind, per_node to a machine.

    batch: pairs per update over all GPUs; None is the configuration's.
    Raises ValueError where numbers do not divide, the GPU is unknown, or the prior is not DALLE.
    """
    if config.prior != "dalle":
        raise ValueError(f"the planner counts prior=dalle only, got prior={config.prior}")
    batch = config.train_dalle.batch_size if batch is None else batch
    per_node = min(per_node, gpus)
    if gpu not in GPUS:
        raise ValueError(f"unknown GPU {gpu!r}; choose from {', '.join(GPUS)}")
    if gpus < 1 or batch < 1 or gpus % per_node or batch % gpus:
        raise ValueError(
            f"batch={batch} must divide among gpus={gpus}, and those into nodes of {per_node}"
        )
    made = Plan(config, gpus, batch, gpu, per_node, utilisation)
    pairs = batch // gpus
    for parts in (n for n in range(1, pairs + 1) if pairs % n == 0):  # the fewest that fit
        made = replace(made, parts=parts)
        if made.fits:
            break
    return made


def prior_bytes(config: Config, batch: int, slices: int = 1, scheme=SCHEMES[0]) -> dict[str, int]:
    """Return what training the prior takes on one GPU; see arithmetic.training_bytes."""
    precision = config.train_dalle.precision.replace("auto", "bfloat16")  # as a GPU has it
    return arithmetic.training_bytes(config.dalle, batch, slices, scheme, precision)


def advice(p: Plan) -> list[str]:
    """What to change where it does not fit, and what to mind where it does."""
    c, pairs, lines = p.config.dalle, p.batch // p.gpus, []
    if p.fits and p.parts > 1:
        lines.append(f"accumulate: train_dalle.accumulate={p.parts}")
    if not p.fits:
        if not c.checkpointing:
            lines.append("recompute activations: dalle.checkpointing=true")
        if p.per_node < 8:
            lines.append(f"more GPUs per machine: weights and moments divide by {p.per_node} now")
        for scheme, n in ((scheme, n) for scheme in SCHEMES[1:] for n in (pairs, 1)):
            need = sum(prior_bytes(p.config, n, p.per_node, scheme).values())
            if need <= p.gpu.memory * USABLE:  # such an update has no parts
                lines.append(f"{scheme.name}: {need / GIB:.1f} GiB with {n} of {pairs} pairs")
                break
        else:
            lines.append("no scheme fits this GPU: fewer layers or heads, or a larger GPU")
    if p.gpus > p.per_node:
        whole, thin = (arithmetic.network_bytes(c, p.per_node, r) for r in (0, paper_rank(c.width)))
        lines.append(
            f"between nodes, --compress -1 sends {1 - thin / whole:.0%} fewer gradient bytes"
        )
    return lines


def table(p: Plan, price: float | None = None, grid: float | None = None) -> str:
    """Return a plan as text for the terminal.

    price: dollars for an hour of one GPU. grid: grams of CO2 that a kWh costs.
    """
    # Parameters, operations and memory.
    c, steps = p.config.dalle, p.config.train_dalle.steps
    counts, forward = arithmetic.parameters(c), arithmetic.forward_flops(c)
    work = arithmetic.training_flops(c, recompute=True)
    verdict = f"{'fits' if p.fits else 'DOES NOT FIT'} {p.gpu.memory:g}"
    rows: list[tuple] = [
        (f"{p.config.preset}: {c.n_layers} layers, width {c.width}, {arithmetic.states(c)} states, "
         f"on {p.gpus} × {p.name} ({p.per_node} per machine), batch {p.batch}\n\nparameters",),
        *((name, f"{n:,}") for name, n in counts.items()),
        ("all", f"{sum(counts.values()):,}"),
        ("floating-point operations",),
        *((f"{name}, forward, one pair", f"{n:.3e}") for name, n in forward.items()),
        ("one update, forward+backward", f"{p.flops:.3e}"),
        ("the machine, with recompute", f"{work * p.batch:.3e}"),
        (f"memory per GPU, GiB ({p.batch // p.gpus // p.parts} pairs at once)",),
        *((name, f"{n / GIB:.2f}") for name, n in p.memory.items() if n),
        ("all", f"{sum(p.memory.values()) / GIB:.2f}", verdict),
    ]  # fmt: skip
    # The network, time, money and sampling.
    if p.gpus > p.per_node:
        rank = paper_rank(c.width)
        whole, thin = (arithmetic.network_bytes(c, p.per_node, r) / GIB for r in (0, rank))
        papers = f"(the paper counts {saving(rank, c.width):.1%} of the blocks' saved)"
        rows += [("gradients between machines, per GPU and update",)]
        rows += [("whole, GiB", f"{whole:.2f}")]
        rows += [(f"PowerSGD rank {rank}, GiB", f"{thin:.2f}", papers)]
    rows += [(f"time, at {p.utilisation:.0%} of {p.gpu.tflops:g} TFLOP/s",)]
    rows += [("one update, s", f"{p.seconds:.3g}")]
    for n in sorted({steps, PAPER_UPDATES}):
        rows += [(f"{n:,} updates, days", f"{p.seconds * n / 86400:.3g}")]
    rows += [
        *_bill_rows(p, price, grid),
        *_sampling_rows(p),
        *((f"to do: {line}",) for line in advice(p)),
    ]
    lines = [r[0] if len(r) == 1 else f"  {r[0]:<30}{r[1]:>18}  {''.join(r[2:])}" for r in rows]
    return "\n".join(line.rstrip(" ") for line in lines)


def _bill_rows(p: Plan, price: float | None, grid: float | None) -> list[tuple]:
    """What the configuration's updates cost; of the electricity, the GPUs' alone."""
    if price is None and grid is None:
        return []
    if not all(0 <= n < math.inf for n in (price or 0, grid or 0)):
        raise ValueError(f"a price and a grid's CO2 are numbers from 0, got {price} and {grid}")
    hours = p.gpus * p.days * 24
    energy = hours * p.gpu.watts / 1000  # kWh
    rows: list[tuple] = [(f"cost of {p.config.train_dalle.steps:,} updates",)]
    rows += [("GPU hours", _short(hours))]
    if price is not None:
        rows += [(f"dollars, at {price:g} an hour", _short(hours * price))]
    if grid is not None:
        note = f"({_short(energy)} kWh: GPUs at {p.gpu.watts:g} W, without machines and cooling)"
        rows += [(f"kg of CO2, at {grid:g} g a kWh", _short(energy * grid / 1000), note)]
    return rows


def _short(n: float) -> str:
    return f"{n:,.0f}" if n >= 100 else f"{n:.3g}"


def sampled_at_once(p: Plan) -> int:
    """Return how many images of one caption a GPU draws at once, weights in bfloat16."""
    one, two = (sum(arithmetic.sampling_bytes(p.config.dalle, n).values()) for n in (1, 2))
    return max(0, int((p.gpu.memory * USABLE - one) // (two - one)) + 1)


def _sampling_rows(p: Plan) -> list[tuple]:
    """How many images of one caption a GPU draws at once; 512 is the paper's number."""
    c, n = p.config.dalle, sampled_at_once(p)
    one, two = (sum(arithmetic.sampling_bytes(c, n).values()) / GIB for n in (1, 2))
    if not n:
        return [(f"sampling needs {one:.1f} GiB for one image: DOES NOT FIT",)]
    full = f"(a cache of every state: {arithmetic.full_cache_bytes(c, 1) / GIB:.3f})"
    batches = f"{n:,} images of one caption at once, 512 in {-(-512 // n)} batches"
    each = ("each image, GiB", f"{two - one:.3f}", full)
    return [(f"sampling on one GPU, bfloat16: {batches}",), each]
