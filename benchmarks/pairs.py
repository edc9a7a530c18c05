"""Figure 2d on the toy: "the same thing, in blue, below" an image of something, by DALL-E's prior.

In an image of the paired world the lower half shows the shape of the upper half once more, in the
colour that the caption says; the shape it does not say. So the upper half must be read, as in the
paper's "the exact same cat on the top as a sketch on the bottom". Some (shape, colour) pairs never
appear in training, in neither half. The dVAE goes on from the toy's, the prior starts from nothing.
Measured by the toy's judge, which reads the lower half, enlarged: images drawn below a given upper
half; in the last row the upper half is drawn, too, from the caption alone, and read by the judge.
Run: OMP_NUM_THREADS=1 python benchmarks/pairs.py [--run runs/pairs] [--ship]
     goes on where it stopped; --ship writes data/checkpoints/pairs and results/pairs.txt.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from minidalle import stages
from minidalle.config import get_config
from minidalle.data import shapes
from minidalle.evaluation.judge import Judge
from minidalle.generate import Pipeline, sample
from minidalle.models import load
from minidalle.stages import SHIPPED
from minidalle.training.run import Alone

HERE = Path(__file__).resolve().parent
RADIUS, HEIGHTS = 6.2, (8.0, 24.0)  # pixels: of an object, and of the two objects' middles
FORMS = ("the same thing, in {}, below", "below, the same thing in {}", "the same in {}")
N_TRAIN, N_TEST = 8000, 256  # images
SIZES = [
    "data.name=folder", "dvae.spread_codes=false",
    "dalle.text_len=17", "train_dvae.steps=1600", "train_dvae.lr=1e-3", "train_dalle.steps=1200",
]  # fmt: skip


def draw(n: int, seed: int, split: str) -> tuple[Tensor, list[str], list[dict[str, str]]]:
    """Draw n images uint8 (n, 3, 32, 32), their captions, and what their lower halves show.

    split: 'train' and 'test' hold seen pairs, 'held_out' below only pairs that those never hold.
    """
    rng, images, captions, truth = np.random.default_rng([seed, len(split)]), [], [], []
    while len(images) < n:
        shape, above, below = (
            options[rng.integers(len(options))]
            for options in (shapes.SHAPES, tuple(shapes.COLOURS), tuple(shapes.COLOURS))
        )
        unseen = [(shape, colour) in shapes.HELD_OUT for colour in (above, below)]
        if unseen != [False, split == "held_out"]:
            continue
        ground = tuple(shapes.BACKGROUNDS)[rng.integers(4)]
        image = np.tile(np.array(shapes.BACKGROUNDS[ground], float), (shapes.SIDE**2, 1))  # (P, 3)
        x = rng.uniform(9, 23)
        for colour, y in zip((above, below), HEIGHTS, strict=True):
            centre = np.array([x, y]) + rng.uniform(-1, 1, 2)
            share = shapes.cover(shape, centre, RADIUS * rng.uniform(0.95, 1.05))[:, None]
            image += share * (np.array(shapes.COLOURS[colour]) - image)
        images.append(np.rint(image).T.reshape(3, shapes.SIDE, shapes.SIDE).astype(np.uint8))
        captions.append(FORMS[rng.integers(len(FORMS))].format(below))
        truth.append({"shape": shape, "colour": below, "background": ground})
    return torch.from_numpy(np.stack(images)), captions, truth


def write(root: Path) -> None:
    """Write the training and test images as a folder of your own images, for the commands."""
    for split, n in (("train", N_TRAIN), ("test", 1000)):
        folder, lines = root / split, []
        folder.mkdir(parents=True)
        images, captions, _ = draw(n, 0, split)
        for i, (image, caption) in enumerate(zip(images, captions, strict=True)):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{i}.png")
            lines.append(f"{i}.png\t{caption}\n")
        (folder / "captions.tsv").write_text("".join(lines))


def lower(images: Tensor, top: int = 16) -> Tensor:
    """Cut the object out of one half of images (n, 3, 32, 32), enlarged as the judge knows it."""
    half = images[:, :, top : top + 16]
    ground = half.median(-1, keepdim=True).values.median(-2, keepdim=True).values
    found = (half - ground).abs().sum((1, 2))  # (n, 32), how much is there in each column
    middle = (found * torch.arange(32)).sum(1) / found.sum(1).clamp(min=1e-6)
    left = middle.round().long().clamp(8, 24) - 8
    cut = [image[:, :, x : x + 16] for image, x in zip(half, left.tolist(), strict=True)]
    return F.interpolate(torch.stack(cut), (32, 32), mode="bicubic").clamp(0, 1)


def shares(found: dict[str, list[str]], wanted: list[dict[str, str]]) -> str:
    """Say how many percent have the right shape, the right colour, and all that is wanted."""
    rows = [dict(zip(found, row, strict=True)) for row in zip(*found.values(), strict=True)]
    right = [{k: row[k] == w[k] for k in w} for row, w in zip(rows, wanted, strict=True)]
    parts = {name: [r[name] for r in right] for name in ("shape", "colour")}
    parts["all"] = [all(r.values()) for r in right]
    return " | ".join(f"{100 * sum(marks) / len(marks):.1f}" for marks in parts.values())


@torch.inference_mode()
def measure(run: Path) -> str:
    """Return a table in Markdown."""
    pipeline, judge = Pipeline.load(run), Judge.load(SHIPPED / "toy" / "judge")
    lines = [
        "| lower half | pairs | shape right, % | colour | shape, colour, ground |",
        "|-" * 5 + "|",
    ]
    for split in ("test", "held_out"):
        images, captions, truth = draw(N_TEST, 1, split)
        tokens = pipeline.codebook.tokens(images.float() / 255)  # (n, grid, grid)
        kept = tokens.flatten(1)[:, : tokens[0].numel() // 2]
        text = pipeline.tokenizer.encode_batch(captions, pipeline.prior.caption_len)
        seeded = torch.Generator().manual_seed(0)
        below = pipeline.decode(sample(pipeline.prior, text, N_TEST, prompt=kept, generator=seeded))
        free = pipeline.decode(sample(pipeline.prior, text, N_TEST, generator=seeded))
        above = judge.read(lower(free, 0))
        same = [
            {"shape": shape, "colour": t["colour"], "background": ground}
            for shape, ground, t in zip(above["shape"], above["background"], truth, strict=True)
        ]
        rows = {
            "true": (images / 255, truth), "rebuilt": (pipeline.decode(tokens), truth),
            "drawn below the given half": (below, truth), "both halves drawn": (free, same),
        }  # fmt: skip
        for name, (drawn, wanted) in rows.items():
            kind = "seen" if split == "test" else "held-out"
            lines.append(f"| {name} | {kind} | {shares(judge.read(lower(drawn)), wanted)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=Path("runs/pairs"))
    parser.add_argument("--ship", action="store_true")
    a = parser.parse_args()
    torch.set_num_threads(1)
    if not (a.run / "data").exists():
        write(a.run / "data")
    config = get_config("toy", [*SIZES, f"data.folder={a.run / 'data'}"])
    if not (a.run / "tokenizer").exists():
        stages.train_tokenizer(config, a.run)
    team = Alone()
    team.model = load(SHIPPED / "toy", "dvae").to(memory_format=torch.channels_last)
    for stage, its in (("dvae", team), ("dalle", None)):
        if not stages.finished(a.run, stage, config):
            print(stage, stages.train_stage(config, stage, a.run, team=its), flush=True)
    table = measure(a.run)
    print(table)
    if a.ship:
        sys.path.insert(0, str(SHIPPED))
        from build import ship

        ship(a.run, SHIPPED / "pairs", stages=("tokenizer", "dvae", "dalle"))
        (HERE / "results" / "pairs.txt").write_text(table + "\n")


if __name__ == "__main__":
    main()
