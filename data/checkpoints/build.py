"""Train the checkpoints that ship with the code: `make checkpoints`, about 12 minutes.

Every stage of the toy preset by the demo's own code, and the judge; weights are stored in 16 bit.
"""

import json
import shutil
import sys
from pathlib import Path

import torch

from minidalle.config import Config, get_config, replace, to_json
from minidalle.evaluation import demo
from minidalle.evaluation.judge import make_judge
from minidalle.evaluation.measure import load_cases
from minidalle.evaluation.metrics import accuracy
from minidalle.files import read_metadata, save_model
from minidalle.models import digests, read_model

HERE = Path(__file__).resolve().parent
RUN = HERE.parent.parent / "runs" / "shipped" / "toy"
N_UNSEEN = 4000  # true images that a judge is tested on
CAPTIONS, SEEDS = 32, 10  # of each kind for each seed: the numbers that the README states


def build_judge(config: Config, folder: Path) -> None:
    """Train the judge of a data set, say how often it is right on unseen true images."""
    judge = make_judge(config)
    judge.save(folder)
    unseen = replace(config, seed=config.seed + 1)
    for kind, cases in load_cases(unseen, N_UNSEEN).items():
        for name, mark in accuracy(judge.read(cases.images), cases.attributes).items():
            print(
                f"judge of {config.data.name}, {kind}: {name} right on {100 * mark['share']:.2f} %"
            )


def ship(run: Path, folder: Path) -> None:
    """Copy the products of a run, weights as float16."""
    for stage in ("tokenizer", "dvae", "dalle", "clip"):
        (folder / stage).mkdir(parents=True, exist_ok=True)
        if stage == "tokenizer":
            shutil.copyfile(run / stage / "config.json", folder / stage / "config.json")
            shutil.copyfile(run / stage / "tokenizer.json", folder / stage / "tokenizer.json")
            continue
        weights, config = read_model(run / stage)
        weights = {name: value.half() for name, value in weights.items()}
        earlier = json.loads(read_metadata(run / stage / "model.safetensors")["made_from"])
        save_model(folder / stage, weights, to_json(config), digests(folder, earlier))
    numbers = json.loads((run / "demo.json").read_text())
    (folder / "demo.json").write_text(json.dumps(numbers, indent=1) + "\n")
    shutil.copyfile(run / "demo.png", folder / "demo.png")


def main() -> None:
    """Build all of data/checkpoints/toy, or with --judge NAME the judge of another data set."""
    torch.set_num_threads(1)
    if "--judge" in sys.argv:
        name = sys.argv[sys.argv.index("--judge") + 1]
        preset = "cifar" if name == "cifar" else "mnist"
        return build_judge(get_config(preset, [f"data.name={name}"]), HERE / name / "judge")
    toy = HERE / "toy"
    if "--keep-judge" not in sys.argv:
        build_judge(get_config("toy"), toy / "judge")
    fresh = "--keep-run" not in sys.argv
    demo.run(get_config("toy"), RUN, toy / "judge", fresh=fresh, n=CAPTIONS, seeds=SEEDS)
    ship(RUN, toy)
    size = sum(path.stat().st_size for path in toy.rglob("*") if path.is_file())
    print(f"{toy} holds {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
