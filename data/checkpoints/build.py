"""Train the checkpoints that ship with the code: `make checkpoints`, about 12 minutes for the toy.

    python data/checkpoints/build.py [--preset mnist] [--keep-judge] [--keep-run] [--judge-only]

Every stage of a preset by the commands' own code, and the judge; weights are stored in 16 bit.
Real data are looked for as data/README.md says.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch

from minidalle import data, plot, stages
from minidalle.config import Config, get_config, replace, to_json
from minidalle.evaluation import demo
from minidalle.evaluation.candidates import draw_candidates
from minidalle.evaluation.judge import make_judge
from minidalle.evaluation.measure import load_cases
from minidalle.evaluation.metrics import accuracy, nearest_pixels
from minidalle.evaluation.run import evaluate_run
from minidalle.files import read_metadata, save_model
from minidalle.generate import Pipeline
from minidalle.models import read_model
from minidalle.training.finished import digests

HERE = Path(__file__).resolve().parent
RUNS = HERE.parent.parent / "runs" / "shipped"
N_UNSEEN = 4000  # true images that a judge is tested on
TOY_CAPTIONS, TOY_SEEDS = 32, 10  # of each kind for each seed: the numbers that the README states
CAPTIONS, SEEDS = 32, 4  # likewise for real data
N_STYLES = 4  # samples of one caption on a sheet
N_LINES = 60  # of a shipped log for each kind of line
SHEETS = {
    "mnist": (
        "a red seven on a white background",
        "a blue two on a grey background",
        "red seven left of blue two on white",
        "a yellow 8 and a green 4 on a navy background",
        "a purple seven on a black background",  # a held-out pair
        "an orange zero and a pink two on a grey background",  # two held-out pairs
    ),
    "fashion_mnist": (
        "a red dress on a white background",
        "a green sneaker on a grey background",
        "a blue bag on a navy background",
        "cyan trousers on a black background",  # a held-out pair
    ),
    "cifar": ("a photo of a frog", "a ship", "a photo of a horse", "a photo of an airplane",
              "a blurry photo of a truck", "a photo of a cat"),
}  # fmt: skip


def build_judge(config: Config, folder: Path) -> None:
    """Train the judge of a data set, say how often it is right on unseen true images."""
    judge = make_judge(config)
    judge.save(folder)
    unseen = replace(config, seed=config.seed + 1)
    for kind, cases in load_cases(unseen, N_UNSEEN).items():
        for name, mark in accuracy(judge.read(cases.images), cases.attributes).items():
            print(
                f"judge of {config.data.name}, {kind}: {name} right on {100 * mark['share']:.2f} % "
                f"of {len(cases.images)}"
            )


def train(config: Config, run: Path) -> None:
    """Train every stage that is not trained yet."""
    for stage in ("tokenizer", "dvae", "dalle", "clip"):
        if not stages.finished(run, stage, config):
            if stage == "tokenizer":
                stages.train_tokenizer(config, run)
            else:
                print(stage, stages.train_stage(config, stage, run), flush=True)


def draw_sheet(config: Config, run: Path) -> Path:
    """Draw samples of some captions, each with the training image nearest to it by pixels."""
    pipeline, captions = Pipeline.load(run), SHEETS[config.preset]
    training = data.load(config, "train").images
    drawn = draw_candidates(pipeline, captions, N_STYLES, config.seed, progress=False)
    columns, notes = [], [[] for _ in captions]
    for i in range(N_STYLES):
        samples = drawn.images[:, i] / 255
        distance, index = nearest_pixels(samples, training)
        columns += [(f"sample {i + 1}", samples), ("nearest", training[index[:, 0]] / 255)]
        for note, d in zip(notes, distance[:, 0].tolist(), strict=True):
            note += ["", f"{-20 * torch.tensor(d).log10():.1f} dB"]
    return plot.save(plot.sample_sheet(captions, columns, notes), run / "samples.png")


def ship(run: Path, folder: Path, others: tuple[str, ...]) -> None:
    """Copy the products of a run, weights as float16, logs thinned, and the files in `others`."""
    for stage in ("tokenizer", "dvae", "dalle", "clip"):
        (folder / stage).mkdir(parents=True, exist_ok=True)
        if stage == "tokenizer":
            shutil.copyfile(run / stage / "config.json", folder / stage / "config.json")
            shutil.copyfile(run / stage / "tokenizer.json", folder / stage / "tokenizer.json")
            continue
        weights, config = read_model(run / stage)
        weights = {name: value.half() for name, value in weights.items()}
        earlier = json.loads(read_metadata(run / stage / "model.safetensors")["made_from"])
        save_model(folder / stage, weights, to_json(config), earlier | digests(folder, earlier))
        (folder / stage / "log.jsonl").write_text(thin((run / stage / "log.jsonl").read_text()))
    for name in others:
        shutil.copyfile(run / name, folder / name)


def thin(log: str) -> str:
    """Keep about N_LINES lines of training and every test, with five digits a number."""
    rows = [json.loads(line) for line in log.splitlines()]
    training = [row for row in rows if "loss" in row]
    every = max(1, len(training) // N_LINES)
    kept = {id(row) for row in training[every - 1 :: every]}
    lines = [
        json.dumps({k: float(f"{v:.5g}") if isinstance(v, float) else v for k, v in row.items()})
        for row in rows
        if "loss" not in row or id(row) in kept
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Build data/checkpoints/PRESET."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="toy")
    parser.add_argument("--keep-judge", action="store_true", help="the judge is trained already")
    parser.add_argument("--keep-run", action="store_true", help="go on with runs/shipped/PRESET")
    parser.add_argument("--judge-only", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    config, run, folder = get_config(args.preset), RUNS / args.preset, HERE / args.preset
    if not args.keep_judge:
        build_judge(config, folder / "judge")
    if args.judge_only:
        return
    if args.preset == "toy":
        options = dict(fresh=not args.keep_run, n=TOY_CAPTIONS, seeds=TOY_SEEDS)
        demo.run(config, run, folder / "judge", **options)
        ship(run, folder, ("demo.json", "demo.png"))
    else:
        if not args.keep_run:
            shutil.rmtree(run, ignore_errors=True)
        train(config, run)
        draw_sheet(config, run)
        print(evaluate_run(run, run, CAPTIONS, seeds=SEEDS, seed=config.seed))
        ship(run, folder, ("report.json", "samples.png"))
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder} holds {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
