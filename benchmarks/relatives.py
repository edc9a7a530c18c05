"""Two priors on the same tokens: DALLE's one stream beside DALL-E mini's encoder and decoder.

Both learn from the shipped toy tokenizer and dVAE, for as many updates of as many images. The judge
reads one sample at temperature 1 of each of 256 captions; the share in percent is of the images in
which it finds every attribute that the caption states, a mean over four seeds of sampling.
Counted: processor seconds of one thread, evaluations and saving included.
Run: OMP_NUM_THREADS=1 python benchmarks/relatives.py --preset mini_toy --seed 0 [field=value …]
     adds a row to results/relatives.json and prints the table; without --preset it only prints it.
"""

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path

import torch
from records import HERE, KINDS, measure

from minidalle import data, stages
from minidalle.config import get_config
from minidalle.models import load
from minidalle.stages import SHIPPED

ROWS = HERE / "results" / "relatives.json"
SEEDS = range(4)  # of sampling


def train(preset: str, seed: int, overrides: list[str], run: Path) -> dict:
    """Train one prior into run/dalle and measure it."""
    config = get_config(preset, [*overrides, f"seed={seed}"])
    for stage in ("tokenizer", "dvae"):
        shutil.copytree(SHIPPED / "toy" / stage, run / stage, dirs_exist_ok=True)
    data.load(config, "train"), data.load(config, "test")  # drawn once, kept in memory
    began = time.process_time()
    metrics = stages.train_stage(config, "dalle", run, fresh=True)
    seconds = time.process_time() - began
    found = [measure(run, s, 0) for s in SEEDS]
    shares = {kind: [one[kind]["one"] for one in found] for kind in KINDS}
    size = sum(p.numel() for p in load(run, "dalle").parameters())
    return {
        "preset": preset, "overrides": overrides, "seed": seed, "parameters": size,
        "seconds": round(seconds, 1), "image_nats": round(float(metrics["test_image_nats"]), 4),
        "shares": shares,
    }  # fmt: skip


def table(rows: list[dict]) -> str:
    """Lay rows out as Markdown, means over the seeds of training with the worst in brackets."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault((row["preset"], *row["overrides"]), []).append(row)
    lines = [
        "| prior | seeds | parameters | CPU-s | nats an image token | seen | held-out (worst) |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, runs in groups.items():
        seconds, nats = (sum(r[key] for r in runs) / len(runs) for key in ("seconds", "image_nats"))
        means = {kind: [sum(r["shares"][kind]) / len(SEEDS) for r in runs] for kind in KINDS}
        seen, held_out = (sum(values) / len(values) for values in means.values())
        lines.append(
            f"| {' '.join(name)} | {len(runs)} | {runs[0]['parameters']:,} | {seconds:.0f} "
            f"| {nats:.3f} | {seen:.1f} | **{held_out:.1f}** ({min(means['held_out']):.1f}) |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("overrides", nargs="*", help="section.field=value")
    parser.add_argument("--preset")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--run", type=Path, help="keep the run here (default: nowhere)")
    a = parser.parse_args()
    torch.set_num_threads(1)
    rows = json.loads(ROWS.read_text()) if ROWS.exists() else []
    if a.preset:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(train(a.preset, a.seed, a.overrides, a.run or Path(folder)))
        ROWS.write_text(json.dumps(rows, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
