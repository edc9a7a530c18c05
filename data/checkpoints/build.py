"""Train the checkpoints that ship with the code: `make checkpoints`, about 12 minutes for the toy.

    python data/checkpoints/build.py [--preset mnist] [--keep-judge] [--keep-run] [--judge-only]

Every stage of a preset by the commands' own code, and the judge; weights are stored in 16 bit.
A preset of BORROWS trains its prior alone, on the shipped tokenizer and dVAE of another.
Real data are looked for as data/README.md says.
"""

import argparse
import json
import math
import shutil
from pathlib import Path

import torch
import torch.nn.functional as F

from minidalle import data, plot, stages
from minidalle.config import Config, get_config, replace, to_json
from minidalle.evaluation import demo, metrics
from minidalle.evaluation.candidates import draw_candidates, reconstruct
from minidalle.evaluation.judge import Judge, make_judge
from minidalle.evaluation.measure import load_cases
from minidalle.evaluation.metrics import accuracy, nearest_pixels
from minidalle.evaluation.run import evaluate_run
from minidalle.files import read_metadata, save_model, save_tensors, write_text
from minidalle.generate import Pipeline
from minidalle.models import read_model
from minidalle.training.finished import digests

HERE = Path(__file__).resolve().parent
RUNS = HERE.parent.parent / "runs" / "shipped"
N_UNSEEN = {"cifar": 10_000}  # true images that a judge is tested on; 2,000 of other data
TOY_CAPTIONS, TOY_SEEDS = 32, 10  # of each kind for each seed: the numbers that the README states
CAPTIONS, SEEDS = 32, 4  # likewise for the others
N_MANY = {"scenes": 128, "cifar": 128}  # of these more: rows, and classes, need their captions
N_STYLES = 4  # samples of one caption on a sheet
N_SHOWN = 8  # reconstructions on a sheet
N_TOKENS = 256  # images of each kind whose tokens are shipped
N_LINES = 60  # of a shipped log for each kind of line
STAGES = ("tokenizer", "dvae", "dalle", "clip")
BORROWS = {"mini_toy": "toy"}  # presets that differ in the prior alone: whose tokenizer and dVAE
SHEETS = {
    "mnist": (
        "a red seven on a white background",
        "a blue two on a grey background",
        "red seven left of blue two on white",
        "a yellow 8 and a green 4 on a navy background",
        "a purple seven on a black background",  # a held-out pair
        "an orange zero and a pink two on a grey background",  # two held-out pairs
    ),
    "scenes": (
        "a red star left of a yellow circle on white",  # a held-out binding
        "a yellow circle left of a red star on white",
        "three pink hearts on black",
        "a pink star above a green square on grey",  # a held-out pair
        "a yellow star on black",
        "a cyan heart and a red cross on a white background",
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
    for kind, cases in load_cases(unseen, N_UNSEEN.get(config.data.name, 2000)).items():
        for name, mark in accuracy(judge.read(cases.images), cases.attributes).items():
            print(
                f"judge of {config.data.name}, {kind}: {name} right on {100 * mark['share']:.2f} % "
                f"of {len(cases.images)}"
            )


def train(config: Config, run: Path) -> None:
    """Train every stage that is not trained yet."""
    for stage in STAGES:
        if not stages.finished(run, stage, config):
            if stage == "tokenizer":
                stages.train_tokenizer(config, run)
            else:
                print(stage, stages.train_stage(config, stage, run), flush=True)


def draw_sheet(config: Config, run: Path) -> Path:
    """Draw samples of some captions, each with the training image nearest to it by pixels."""
    pipeline, captions = Pipeline.load(run), SHEETS[config.preset]
    training = data.load(config, "train").images
    drawn = draw_candidates(pipeline, captions, N_STYLES, config.seed)
    columns, notes = [], [[] for _ in captions]
    for i in range(N_STYLES):
        samples = drawn.images[:, i] / 255
        distance, index = nearest_pixels(samples, training)
        columns += [(f"sample {i + 1}", samples), ("nearest", training[index[:, 0]] / 255)]
        for note, d in zip(notes, distance[:, 0].tolist(), strict=True):
            note += ["", f"{-20 * torch.tensor(d).log10():.1f} dB"]
    return plot.save(plot.sample_sheet(captions, columns, notes), run / "samples.png")


def plain_colours(images: torch.Tensor, grid: int, bits: int) -> torch.Tensor:
    """Average each cell of images (N, 3, S, S) in [0, 1], and round its colour to `bits` bits.

    Red and green get the bits that are over. Returns (N, 3, grid, grid).
    """
    levels = torch.tensor([2 ** ((bits + 2 - channel) // 3) - 1 for channel in range(3)])
    small = F.interpolate(images, (grid, grid), mode="area")
    return (small * levels.view(3, 1, 1)).round() / levels.view(3, 1, 1)


def plain_codes(images: torch.Tensor, grid: int, bits: int) -> torch.Tensor:
    """Spend as many bits as tokens do without learning: colours of cells, enlarged smoothly."""
    small = plain_colours(images, grid, bits)
    return F.interpolate(small, images.shape[-2:], mode="bicubic").clamp(0, 1)


@torch.inference_mode()
def rebuild(config: Config, run: Path, judge: Judge) -> dict[str, dict[str, float]]:
    """Compare reconstructions with plain codes of as many bits, in run/rebuilt.png and numbers.

    Writes run/tokens.safetensors: the tokens of test images, with captions and attributes, so that
    a lesson can show reconstructions where the data are not. Returns the numbers by kind.
    """
    pipeline = Pipeline.load(run)
    numbers, tokens, known = {}, {}, {}
    bits = int(math.log2(config.dvae.vocab_size))
    for kind, cases in load_cases(config, N_TOKENS).items():
        true = cases.images / 255
        rebuilt, tokens[kind] = reconstruct(pipeline, cases.images)
        sets = {"plain": plain_codes(true, config.dvae.grid, bits), "rebuilt": rebuilt}
        for name, images in sets.items():
            marks = accuracy(judge.read(images), cases.attributes)
            shares = {key: mark["share"] for key, mark in marks.items()}
            numbers.setdefault(kind, {})[name] = {
                "psnr": metrics.psnr(images, true), "ssim": metrics.ssim(images, true), **shares
            }  # fmt: skip
        known[kind] = {"captions": cases.captions, "attributes": cases.attributes}
        if len(numbers) == 1:  # the first kind is shown
            shown = [("true", true), ("plain code", sets["plain"]),
                     ("learnt code", rebuilt)]  # fmt: skip
            notes = [
                ["", *(f"{metrics.psnr(x[i], true[i]):.1f} dB" for _, x in shown[1:])]
                for i in range(N_SHOWN)
            ]
            plot.save(
                plot.sample_sheet(cases.captions[:N_SHOWN], shown, notes), run / "rebuilt.png"
            )
    small = {kind: z.to(torch.int16) for kind, z in tokens.items()}
    save_tensors(run / "tokens.safetensors", small, {"cases": json.dumps(known)})
    return numbers


def ship(run: Path, folder: Path, others: tuple[str, ...] = (), stages: tuple = STAGES) -> None:
    """Copy the products of a run, weights as float16, logs thinned, and the files in `others`."""
    for stage in stages:
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
    borrowed = BORROWS.get(args.preset)
    if not (args.keep_judge or borrowed):
        build_judge(config, folder / "judge")
    if args.judge_only:
        return
    if borrowed:
        for stage in ("tokenizer", "dvae"):
            for place in (run, folder):
                shutil.copytree(HERE / borrowed / stage, place / stage, dirs_exist_ok=True)
        if not (args.keep_run and (run / "dalle" / "model.safetensors").is_file()):
            print(stages.train_stage(config, "dalle", run, fresh=not args.keep_run), flush=True)
        ship(run, folder, stages=("dalle",))
    elif args.preset == "toy":
        options = dict(fresh=not args.keep_run, n=TOY_CAPTIONS, seeds=TOY_SEEDS)
        demo.run(config, run, folder / "judge", **options)
        ship(run, folder, ("demo.json", "demo.png"))
    else:
        if not args.keep_run:
            shutil.rmtree(run, ignore_errors=True)
        train(config, run)
        draw_sheet(config, run)
        numbers = rebuild(config, run, Judge.load(folder / "judge"))
        print(json.dumps(numbers, indent=1))
        n = N_MANY.get(config.preset, CAPTIONS)
        print(evaluate_run(run, run, n, seeds=SEEDS, seed=config.seed), flush=True)
        report = json.loads((run / "report.json").read_text()) | {"equal_bits": numbers}
        write_text(run / "report.json", json.dumps(report, indent=1) + "\n")
        # A lesson shows reconstructions where the data are not; drawn scenes are everywhere.
        kept = () if config.preset == "scenes" else ("rebuilt.png", "tokens.safetensors")
        if (run / "protocol.json").is_file():  # from `minidalle evaluate --protocol paper`
            kept = (*kept, "protocol.json")
        ship(run, folder, ("report.json", "samples.png", *kept))
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder} holds {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
