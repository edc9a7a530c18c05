"""What of the dVAE's recipe matters? The toy preset, and the same with one thing changed.

Run: python benchmarks/dvae_ablation.py [--steps 800] [--seeds 1] [--only NAME] [section.field=…]
The paper says, of 256-pixel photographs and 3,000,000 updates: a larger beta uses more codes and
ends with a lower reconstruction error; 1x1 convolutions around the relaxation bring the relaxed
bound nearer to the true one; max-pooling beats averaging; half a cosine beats a straight line for
tau, which often diverged; the small residual gain makes the start stable. The start from spread
codes and the floor under ln b are ours. Bounds are in nats per pixel value and higher is better;
those of "no floor" are of another likelihood and do not compare with the rest.
Every variant is made here, from outside: the package has no option for it.
Source: Ramesh et al. 2021, arXiv:2102.12092, section 2.1 and appendix A.
"""

import argparse
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minidalle import data
from minidalle.config import Config, get_config, replace
from minidalle.dvae import Conv2d, DiscreteVAE
from minidalle.evaluation import metrics
from minidalle.evaluation.judge import Judge
from minidalle.stages import N_SPREAD
from minidalle.train import fit
from minidalle.training.run import TrainingError
from minidalle.training.spread import spread_codes

JUDGE = Path(__file__).resolve().parent.parent / "data" / "checkpoints" / "toy" / "judge"
N_TEST = 512  # pictures measured
COLUMNS = {
    "psnr": "{:.2f}", "elbo": "{:.3f}", "elbo_relaxed": "{:.3f}", "gap": "{:.3f}",
    "codes_used": "{:.0f}", "perplexity": "{:.0f}", "exact": "{:.1%}",
}  # fmt: skip


class LinearTau(DiscreteVAE):
    """tau falls along a straight line; beta rises as ever."""

    def schedule(self, step: int) -> tuple[float, float]:
        c = self.config
        return 1 + (c.tau - 1) * min(step / c.tau_steps, 1), super().schedule(step)[1]


class AveragePool(DiscreteVAE):
    """The encoder's pools average."""

    def __init__(self, config):
        super().__init__(config)
        for group in self.encoder.blocks:
            if isinstance(group, nn.Sequential) and hasattr(group, "pool"):
                group.pool = nn.AvgPool2d(2)


class WideCodes(DiscreteVAE):
    """The two convolutions around the relaxation are 3x3. They begin as the 1x1 ones they replace:
    same function at the start, same code vectors, and eight more taps to learn."""

    def widen(self) -> "WideCodes":
        self.encoder.blocks.output.conv = wider(self.encoder.blocks.output.conv)
        self.decoder.blocks.input = wider(self.decoder.blocks.input)
        return self

    def code_vectors(self, tokens: Tensor) -> Tensor:
        one_hot = F.one_hot(tokens, self.config.vocab_size).permute(0, 3, 1, 2).float()
        return self.decoder.blocks.input(one_hot)


def wider(conv: Conv2d) -> Conv2d:
    """Return the 3x3 convolution that does what a 1x1 one does."""
    n_out, n_in = conv.w.shape[:2]
    wide = Conv2d(n_in, n_out, 3)
    with torch.no_grad():
        wide.w.copy_(F.pad(conv.w, (1, 1, 1, 1)))
        wide.b.copy_(conv.b)
    return wide


@dataclass(frozen=True)
class Variant:
    """change: the preset's configuration -> this variant's, in the dvae section."""

    change: Callable[[Config], dict] = lambda config: {}
    model: type[DiscreteVAE] = DiscreteVAE


def scaled(name: str, factor: float) -> Callable[[Config], dict]:
    """Return a change: field `name` of the preset times a factor."""
    return lambda config: {name: factor * getattr(config.dvae, name)}


def fixed(**values: object) -> Callable[[Config], dict]:
    """Return a change: these values."""
    return lambda config: values


def both(*changes: Callable[[Config], dict]) -> Callable[[Config], dict]:
    """Return several changes as one."""
    return lambda config: {k: v for change in changes for k, v in change(config).items()}


plain = fixed(spread_codes=False)
VARIANTS = {
    "preset": Variant(),
    "beta / 10": Variant(scaled("beta", 0.1)),
    "beta x 3": Variant(scaled("beta", 3)),
    "beta 6.6, the paper's": Variant(fixed(beta=6.6)),
    "3x3 around the codes": Variant(model=WideCodes),
    "average-pool": Variant(model=AveragePool),
    "tau linear": Variant(model=LinearTau),
    "tau stays 1": Variant(fixed(tau=1.0)),
    "tau to 1/16": Variant(fixed(tau=1 / 16)),
    "gain 1/layers^2": Variant(fixed(gain=None)),
    "no floor of ln b": Variant(fixed(min_log_b=None)),
    "no spread": Variant(plain),
    "no spread, beta / 10": Variant(both(plain, scaled("beta", 0.1))),
    "no spread, beta x 3": Variant(both(plain, scaled("beta", 3))),
    "no spread, beta 6.6": Variant(both(plain, fixed(beta=6.6))),
}


def shortened(config: Config, steps: int) -> Config:
    """Squeeze the whole recipe into `steps` updates: schedules keep their share of the run."""
    train, dvae = config.train_dvae, config.dvae
    part = partial(squeeze, old=train.steps, new=steps)
    return replace(
        config,
        dvae=replace(
            dvae, tau_steps=part(dvae.tau_steps), beta_steps=part(dvae.beta_steps)
        ),
        train_dvae=replace(
            train, steps=steps, warmup=part(train.warmup) if train.warmup else 0,
            log_every=steps, save_every=steps,
        ),
    )  # fmt: skip


def squeeze(updates: int, old: int, new: int) -> int:
    """Scale a number of updates as a run goes from `old` updates to `new`; at least 1."""
    return max(1, round(updates * new / old))


def build(config: Config, kind: type[DiscreteVAE], images: Tensor) -> DiscreteVAE:
    """Make an untrained model of a kind, as stages.py does; images (N, 3, S, S) in [0, 1]."""
    torch.manual_seed(config.seed)
    model = kind(config.dvae)
    if config.dvae.spread_codes:
        spread_codes(model, images[:N_SPREAD], torch.Generator().manual_seed(config.seed))
    model = model.widen() if isinstance(model, WideCodes) else model
    return model.to(memory_format=torch.channels_last)


def run(config: Config, variant: Variant, sets: tuple, judge: Judge | None) -> dict[str, float]:
    """Train a variant and measure it on test pictures."""
    config = replace(config, dvae=replace(config.dvae, **variant.change(config)))
    train, test = sets
    model = build(config, variant.model, pictures(train, N_SPREAD))
    batches = data.batches(train, config, "dvae", seed=config.seed)
    with tempfile.TemporaryDirectory() as folder:
        try:
            fit(model, batches, config.train_dvae, folder, seed=config.seed)
        except TrainingError:
            return dict.fromkeys(COLUMNS, math.nan)
    return measure(model.eval(), test, config.train_dvae.steps, judge)


def pictures(dataset, n: int) -> Tensor:
    """Return the first n pictures of a data set, (n, 3, S, S) in [0, 1]."""
    return torch.stack([dataset[i][0] for i in range(min(n, len(dataset)))]).float() / 255


@torch.no_grad()
def measure(model: DiscreteVAE, test, steps: int, judge: Judge | None) -> dict[str, float]:
    """Return what the columns show, by name."""
    images = pictures(test, N_TEST)
    found = model.evaluate(images, steps, torch.Generator().manual_seed(0))
    found["gap"] = found["elbo_relaxed"] - found["elbo"]
    found["exact"] = math.nan
    if judge is not None:
        read = judge.read(model.decode(model.tokens(images)))
        wanted = [test.attributes(i) for i in range(len(images))]
        found["exact"] = metrics.accuracy(read, wanted)["exact"]["share"]
    return found


def row(name: str, results: list[dict[str, float]]) -> str:
    """Lay out the mean over seeds, and behind PSNR and the true bound half the range."""
    cells = []
    for column, form in COLUMNS.items():
        values = [r[column] for r in results]
        text = form.format(sum(values) / len(values))
        if len(values) > 1 and column in ("psnr", "elbo"):
            text += "±" + form.format((max(values) - min(values)) / 2)
        cells.append(f"{text:>13}")
    return f"{name:24}" + "".join(cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=800, help="updates a run (default 800)")
    parser.add_argument("--seeds", type=int, default=1, help="runs a variant (default 1)")
    parser.add_argument(
        "--only", action="append", choices=VARIANTS, metavar="NAME",
        help=f"this variant; may be given again. One of: {'; '.join(VARIANTS)}",
    )  # fmt: skip
    parser.add_argument("overrides", nargs="*", help="of the toy preset, like dvae.n_hid=16")
    a = parser.parse_args()
    base = shortened(get_config("toy", a.overrides), a.steps)
    judge = Judge.load(JUDGE) if JUDGE.is_dir() else None
    sets = data.load(base, "train"), data.load(base, "test")
    c = base.dvae
    print(
        f"toy preset: n_hid {c.n_hid}, {c.vocab_size} codes, beta {c.beta:g}, tau 1 to {c.tau:g}, "
        f"ln b from {c.min_log_b}, gain {c.gain}, spread codes {c.spread_codes}; {a.steps} updates "
        f"of {base.train_dvae.batch_size}, {a.seeds} seed(s), torch {torch.__version__}"
    )
    print(" " * 24 + "".join(f"{name:>13}" for name in COLUMNS), flush=True)
    for name in a.only or VARIANTS:
        seeds = range(base.seed, base.seed + a.seeds)
        found = [run(replace(base, seed=s), VARIANTS[name], sets, judge) for s in seeds]
        print(row(name, found), flush=True)


if __name__ == "__main__":
    main()
