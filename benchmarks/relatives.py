"""Two priors on the same tokens: DALLE's one stream beside DALL-E mini's encoder and decoder.

Both learn from the shipped toy tokenizer and dVAE, for as many updates of as many images. The judge
reads one sample at temperature 1 of each of 256 captions; the share in percent is of the images in
which it finds every attribute that the caption states, a mean over four seeds of sampling.
Cost: processor seconds of one update of the prior, beside those of the toy's prior, in turns, so
that a busy machine slows both down; 1.5 says that an update takes half as long again.
Run: OMP_NUM_THREADS=1 python benchmarks/relatives.py --preset mini_toy --seed 0 [field=value …]
     adds a row to results/relatives.json and prints the table; without --preset it only prints it.
     … --preset toy --shipped   the row of a shipped checkpoint, which is not trained again
"""

import argparse
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from peers import alternate
from records import HERE, KINDS, measure

from minidalle import stages
from minidalle.config import Config, get_config
from minidalle.models import build, load
from minidalle.stages import SHIPPED
from minidalle.train import autocast
from minidalle.training.optim import make_optimizer

ROWS = HERE / "results" / "relatives.json"
SEEDS = range(4)  # of sampling


def train(config: Config, run: Path) -> None:
    """Train one prior into run/dalle, after the toy's tokenizer and dVAE."""
    for stage in ("tokenizer", "dvae"):
        shutil.copytree(SHIPPED / "toy" / stage, run / stage, dirs_exist_ok=True)
    stages.train_stage(config, "dalle", run, fresh=True)


def row(config: Config, run: Path) -> dict:
    """Measure a run: sizes, cost, the last loss of its log, and what the judge reads."""
    found = [measure(run, seed, 0) for seed in SEEDS]
    last = json.loads((run / "dalle" / "log.jsonl").read_text().splitlines()[-1])
    both = {config.preset: config, "toy": get_config("toy")}
    seconds = alternate({name: update(c) for name, c in both.items()}, 10)
    return {
        "preset": config.preset,
        "seed": config.seed,
        "parameters": sum(p.numel() for p in load(run, "dalle").parameters()),
        "cost": round(seconds[config.preset] / seconds["toy"], 2),
        "image_nats": round(last["test_image_nats"], 4),
        "shares": {kind: [one[kind]["one"] for one in found] for kind in KINDS},
    }


def update(config: Config) -> Callable[[], None]:
    """Return what does one update of a prior, on a batch of random captions and tokens."""
    c, t = config.dalle, config.train_dalle
    model = build(config, "dalle").train()
    optimizer, g = make_optimizer(model, t), torch.Generator().manual_seed(0)
    batch = {
        "text": torch.randint(c.text_vocab, (t.batch_size, c.caption_len), generator=g),
        "tokens": torch.randint(c.image_vocab, (t.batch_size, c.grid**2), generator=g),
    }

    def run() -> None:
        with autocast(t.precision, "cpu"):
            loss, _ = model.loss(batch, t.steps, g)
        loss.backward()
        optimizer.step(), optimizer.zero_grad()

    return run


def table(rows: list[dict]) -> str:
    """Lay rows out as Markdown, means over the seeds of training with the worst in brackets."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault((row["preset"], *row["overrides"]), []).append(row)
    lines = [
        "| prior | seeds | parameters | cost | nats an image token | seen | held-out (worst) |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, runs in groups.items():
        cost, nats = (sum(r[key] for r in runs) / len(runs) for key in ("cost", "image_nats"))
        means = {kind: [sum(r["shares"][kind]) / len(SEEDS) for r in runs] for kind in KINDS}
        seen, held_out = (sum(values) / len(values) for values in means.values())
        lines.append(
            f"| {' '.join(name)} | {len(runs)} | {runs[0]['parameters']:,} | {cost:.2f} "
            f"| {nats:.3f} | {seen:.1f} | **{held_out:.1f}** ({min(means['held_out']):.1f}) |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("overrides", nargs="*", help="section.field=value")
    parser.add_argument("--preset")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shipped", action="store_true", help="measure what is shipped")
    a = parser.parse_args()
    torch.set_num_threads(1)
    rows = json.loads(ROWS.read_text()) if ROWS.exists() else []
    if a.preset:
        config = get_config(a.preset, [*a.overrides, f"seed={a.seed}"])
        with tempfile.TemporaryDirectory() as folder:
            run = SHIPPED / a.preset if a.shipped else Path(folder)
            if not a.shipped:
                train(config, run)
            rows.append(row(config, run) | {"overrides": a.overrides})
        ROWS.write_text(json.dumps(rows, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
