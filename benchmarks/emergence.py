"""When does a prior learn to compose? Each attribute, and all of them together, while it trains.

The captions name two objects with their colours, how they stand to each other, and the ground: six
attributes. If each were drawn right or wrong by a chance of its own, all would be right with the
product of their shares; beside it stands how often all are right in truth.
Run beside the training of a prior on the drawn scenes, from its start:
     OMP_NUM_THREADS=1 python benchmarks/emergence.py runs/scenes [--n 192]
Every new checkpoint is measured by its averaged weights, one sample a caption at temperature 1;
results/emergence.json holds one row for each. It ends when the prior's training does.
"""

import argparse
import json
import math
import time
from pathlib import Path

import torch

from minidalle import data
from minidalle.config import Config, replace
from minidalle.data import scenes
from minidalle.evaluation.judge import Judge
from minidalle.files import load_tensors, write_text
from minidalle.generate import Pipeline, sample
from minidalle.models import build, load
from minidalle.training.finished import read_model

HERE = Path(__file__).resolve().parent
JUDGE = HERE.parent / "data" / "checkpoints" / "scenes" / "judge"
SPLITS = {"seen": "test", "held-out pair": "held_out", "held-out binding": "bindings"}


def full_captions(config: Config, split: str, n: int) -> list[tuple[str, dict[str, str]]]:
    """Return n captions that state all six attributes, with what they state."""
    some = data.load(replace(config, data=replace(config.data, n_test=8 * n)), split)
    found = []
    for i in range(len(some)):
        ways = scenes.stated(caption := some.caption(i))
        if len(ways) == 1 and len(ways[0]) == 6 and "none" not in ways[0].values():
            found.append((caption, ways[0]))
    return found[:n]


@torch.inference_mode()
def measure(pipeline: Pipeline, judge: Judge, cases: list) -> dict[str, float]:
    """Return the share of each attribute, of all together, and the product of the first six."""
    captions, wanted = zip(*cases, strict=True)
    text = pipeline.tokenizer.encode_batch(list(captions), pipeline.prior.caption_len)
    tokens = sample(pipeline.prior, text, len(text), generator=torch.Generator().manual_seed(0))
    read = judge.read(pipeline.decode(tokens))
    right = {k: [r == w[k] for r, w in zip(read[k], wanted, strict=True)] for k in wanted[0]}
    share = {name: sum(values) / len(values) for name, values in right.items()}
    exact = sum(map(all, zip(*right.values(), strict=True))) / len(wanted)
    return share | {"product": math.prod(share.values()), "exact": exact}


def main() -> None:
    """Watch a run and write down what each checkpoint can do."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--n", type=int, default=192, help="captions of each kind (default 192)")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "emergence.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    judge, rows, done = Judge.load(JUDGE), [], set()
    folder, finished = args.run / "dalle", False
    while not finished:
        # A look after the end still finds the last checkpoint.
        finished = (folder / "model.safetensors").exists()
        for path in sorted((folder / "checkpoints").glob("step-*.safetensors")):
            if path.name in done:
                continue
            done.add(path.name)
            config = read_model(args.run / "dvae")[1]
            prior = build(config, "dalle")
            average = {
                name.removeprefix("average/"): value
                for name, value in load_tensors(path)[0].items()
                if name.startswith("average/")
            }
            prior.load_state_dict(prior.state_dict() | average)
            parts = [load(args.run, stage) for stage in ("tokenizer", "dvae")]
            pipeline = Pipeline(*parts, prior.eval())
            row = {"step": int(path.stem.removeprefix("step-")), "n": args.n}
            for kind, split in SPLITS.items():
                row[kind] = measure(pipeline, judge, full_captions(config, split, args.n))
            rows.append(row)
            shown = {kind: f"{row[kind]['exact']:.3f}" for kind in SPLITS}
            print(row["step"], "all six right:", shown, flush=True)
            write_text(args.out, json.dumps(rows, indent=1) + "\n")
        time.sleep(2)


if __name__ == "__main__":
    main()
