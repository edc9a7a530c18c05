"""Train the checkpoints that ship with the code: `make checkpoints`, about 12 minutes.

Every stage of the toy preset by the demo's own code, and the judge; weights are stored in 16 bit.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from tqdm import tqdm

from minidalle.config import get_config, to_json
from minidalle.evaluation import demo
from minidalle.evaluation.judge import train_judge, true_scenes
from minidalle.files import read_metadata, save_model
from minidalle.models import digests, read_model

HERE = Path(__file__).resolve().parent
RUN = HERE.parent.parent / "runs" / "shipped" / "toy"
STEPS = 2500  # updates of the judge


def build_judge(folder: Path, seed: int = 0) -> None:
    """Train the judge on true scenes, say how often it is right on unseen ones."""
    scenes = true_scenes(20_000, seed)
    bar = tqdm(total=STEPS, desc="judge", disable=None)
    judge = train_judge(
        scenes.images, scenes.attributes, STEPS, progress=lambda step, loss: bar.update()
    )
    bar.close()
    judge.save(folder)
    unseen = true_scenes(4000, seed + 1)
    found = judge.read(unseen.images.float() / 255)
    for name, values in found.items():
        right = sum(v == a[name] for v, a in zip(values, unseen.attributes, strict=True))
        print(f"judge: {name} right on {right} of {len(values)} unseen true scenes")


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
    """Build all of data/checkpoints/toy."""
    torch.set_num_threads(1)
    toy = HERE / "toy"
    if "--keep-judge" not in sys.argv:
        build_judge(toy / "judge")
    demo.run(get_config("toy"), RUN, toy / "judge", fresh="--keep-run" not in sys.argv)
    ship(RUN, toy)
    size = sum(path.stat().st_size for path in toy.rglob("*") if path.is_file())
    print(f"{toy} holds {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
