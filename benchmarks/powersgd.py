"""Where should PowerSGD's Q come from, and which rank is enough? The toy prior on two "machines".

Run: python benchmarks/powersgd.py [--ranks 8 16 32 64] [--steps 240]
Two processes train the toy prior, with two layers, on the drawn shapes (tokens of the shipped dVAE)
with whole gradients and with compressed ones: Q from the last update (warm start), drawn once for
the run (the paper's, appendix E.2), or drawn anew for each update, which footnote 10 warns of. All
see the same batches and start from the same weights; one more with whole gradients starts from
others: what it differs by is noise. The paper takes the smallest rank without a gap in the training
loss over the first tenth of training.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist

from minidalle import notebook
from minidalle.config import Config, get_config
from minidalle.dalle import DALLE
from minidalle.data import shapes
from minidalle.scale import powersgd, sharding
from minidalle.training.optim import clip_gradients, learning_rate, make_optimizer

SCENES = 4000


def plan(ranks: list[int]) -> list[tuple[str, int, dict, int]]:
    """All runs: name, rank, options of `compress`, seed of the first weights."""
    runs = [("whole", 0, {}, seed) for seed in (0, 1)]
    for rank in ranks:
        runs += [(q, rank, {"q": q}, 0) for q in powersgd.SOURCES]
        runs.append(("fixed, 1-6-9", rank, {"q": "fixed", "short_errors": True}, 0))
    return runs


def prepare(path: Path) -> None:
    """Captions and image tokens of the training scenes."""
    scenes, dvae, tokenizer = shapes.draw(SCENES), *map(notebook.shipped, ("dvae", "tokenizer"))
    with torch.no_grad():
        parts = [dvae.tokens(part.float() / 255) for part in scenes.images.split(200)]
    text = tokenizer.encode_batch(scenes.captions, get_config("toy").dalle.text_len - 1)
    torch.save({"text": text, "tokens": torch.cat(parts).flatten(1)}, path)


def train(config: Config, pairs: dict, rank: int, options: dict, seed: int) -> dict:
    """Losses of all updates, and bytes that this process sent in one."""
    c, t, (here, world) = config.dalle, config.train_dalle, (dist.get_rank(), dist.get_world_size())
    mesh = sharding.make_mesh("cpu", nodes=world)
    with torch.device("meta"):
        model = DALLE(c)
    sharding.shard(model, mesh["shard"])
    sharding.fill(model, "cpu", seed)
    powersgd.compress(model, mesh, rank, whole=0, **options)
    optimizer, losses = make_optimizer(model, t), []
    with powersgd.counted_bytes(mesh["replicate"].get_group()) as seen:
        for step in range(t.steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, t)
            g = torch.Generator().manual_seed(step)
            rows = torch.randint(SCENES, (t.batch_size,), generator=g)[here::world]
            loss, _ = model.loss({name: part[rows] for name, part in pairs.items()}, step)
            loss.backward()
            clip_gradients(list(model.parameters()), t.clip_norm)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
    losses = sharding.average([torch.stack(losses)])[0]
    return {"losses": losses.tolist(), "bytes": seen.total / t.steps}


def work(args: argparse.Namespace) -> None:
    """One of the two processes; the first prints a row as each run ends. Ends the process."""
    torch.set_num_threads(1)
    sharding.start("cpu")
    training = (
        f"train_dalle.steps={args.steps}",
        "train_dalle.warmup=10",
        "train_dalle.batch_size=8",
    )
    config = get_config("toy", ["dalle.n_layers=2", *training])
    pairs = torch.load(args.worker)
    for name, rank, options, seed in plan(args.ranks):
        found = train(config, pairs, rank, options, seed)
        if dist.get_rank() == 0:
            print(json.dumps({"name": name, "rank": rank, "seed": seed} | found), flush=True)
    sharding.finish()


def mean(losses: list[float], part: slice) -> float:
    return sum(losses[part]) / len(losses[part])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", nargs="+", type=int, default=[8, 16, 32, 64])
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return work(args)
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder) / "pairs.pt")
        command = [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
            __file__, *sys.argv[1:], "--worker", str(Path(folder) / "pairs.pt"),
        ]  # fmt: skip
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        rows = []
        for line in process.stdout:
            rows.append(json.loads(line))
            show(rows[-1], rows[0], args.steps)
    if process.wait():
        raise SystemExit("the runs failed, see above")


def show(row: dict, whole: dict, steps: int) -> None:
    """Print a run's gaps to the first one: whole gradients, from the same first weights."""
    tenth = steps // 10
    windows = slice(tenth // 2, tenth), slice(steps - tenth, steps)  # the very first are all alike
    if row is whole:
        first, last = (mean(whole["losses"], window) for window in windows)
        print(
            f"toy prior, 2 layers of width 128, {steps} updates of 8 pairs, two machines of one "
            f"process; torch {torch.__version__}\nwhole gradients: loss {first:.4f} in the first "
            f"tenth (updates {tenth // 2 + 1} to {tenth}), {last:.4f} at the end (the last {tenth})"
            f"\n\nrank  Q              bytes saved  gap, first tenth  gap, end",
            flush=True,
        )
        return
    gaps = [mean(row["losses"], w) - mean(whole["losses"], w) for w in windows]
    name = row["name"] if row["rank"] else f"none, seed {row['seed']}"
    saved = 1 - row["bytes"] / whole["bytes"]
    line = f"{row['rank']:>4}  {name:<13}{saved:>13.1%}{gaps[0]:>+18.4f}{gaps[1]:>+10.4f}"
    print(line, flush=True)


if __name__ == "__main__":
    main()
