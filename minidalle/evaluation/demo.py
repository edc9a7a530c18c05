"""The whole of DALL-E on the toy world: train every stage, draw captions, measure what came out.

Source: Ramesh et al. 2021, arXiv:2102.12092, sections 2 and 3.
"""

import json
import time
from pathlib import Path

import torch

from minidalle import plot, stages
from minidalle.config import Config
from minidalle.data import shapes
from minidalle.evaluation.candidates import draw_candidates, reconstruct
from minidalle.evaluation.judge import Judge
from minidalle.evaluation.measure import draw_all, evaluate, load_cases
from minidalle.evaluation.metrics import right
from minidalle.evaluation.report import as_text, tables
from minidalle.files import write_text
from minidalle.generate import Pipeline

CAPTIONS = (
    "a small red heart on a navy background",
    "a large yellow star in the top left on a black background",
    "in the bottom right, a little cyan ring on white",
    "on a grey background, a big blue square in the middle",
    # Pairs of shape and colour that no training image shows:
    "a large red star in the middle on a navy background",
    "a small green heart in the top right on a white background",
    "big pink square, bottom left, black background",
    "an orange hoop in the centre, large, on white",
)
CANDIDATES = 16
N_SHOWN = 4  # samples shown beside the best, the first ones
N_CAPTIONS, SEEDS = 32, 4  # of each kind for each seed, so 128; the shipped numbers take more


def run(
    config: Config,
    folder: Path,
    judge_folder: Path,
    device: str = "cpu",
    fresh: bool = False,
    n: int = N_CAPTIONS,
    seeds: int = SEEDS,
) -> None:
    """Train what is not trained yet, write folder/demo.png and demo.json, print a table."""
    began = time.monotonic()
    for stage in ("tokenizer", "dvae", "dalle", "clip"):
        if not fresh and stages.finished(folder, stage, config):
            print(f"{stage}: trained already, in {folder / stage}")
        elif stage == "tokenizer":
            stages.train_tokenizer(config, folder)
        else:
            stages.train_stage(config, stage, folder, device, fresh=fresh)
    trained = time.monotonic() - began
    pipeline, judge = Pipeline.load(folder, device=device), Judge.load(judge_folder)
    path = plot.save(sheet(pipeline, judge, config.seed), folder / "demo.png")
    cases = load_cases(config, n * seeds)
    drawn = draw_all(pipeline, cases, CANDIDATES, seeds, config.seed)
    numbers = evaluate(pipeline, judge, cases, drawn, seeds, config.seed)
    write_text(folder / "demo.json", json.dumps(numbers, indent=1))
    print(as_text(tables(numbers, 8)))
    print(f"Training took {trained:.0f} s. The samples are in {path}: open it.")


def sheet(pipeline: Pipeline, judge: Judge, seed: int = 0):
    """Draw CAPTIONS: a true image, its reconstruction, samples as they come, the best of all."""
    stated = [shapes.read_caption(caption) for caption in CAPTIONS]
    full = [{"position": "middle"} | a for a in stated]  # a true image needs a position
    true = shapes.render(full)
    rebuilt, _ = reconstruct(pipeline, true)
    drawn = draw_candidates(pipeline, CAPTIONS, CANDIDATES, seed)
    columns = [("true", true / 255), ("rebuilt", rebuilt)]
    notes = [["", mark] for mark in _marks(judge, rebuilt, full)]
    shown = {f"sample {i + 1}": torch.full((len(CAPTIONS),), i) for i in range(N_SHOWN)}
    shown[f"best of {CANDIDATES}"] = drawn.scores.argmax(1)
    rows = torch.arange(len(CAPTIONS))
    for name, chosen in shown.items():
        images = drawn.images[rows, chosen] / 255  # (captions, 3, H, W)
        columns.append((name, images))
        scores = drawn.scores[rows, chosen].tolist()
        for note, score, mark in zip(notes, scores, _marks(judge, images, stated), strict=True):
            note.append(f"{score:.2f} {mark}")
    captions = [
        caption + "\n(pair never seen in training)" * ((a["shape"], a["colour"]) in shapes.HELD_OUT)
        for caption, a in zip(CAPTIONS, stated, strict=True)
    ]
    title = "CLIP score; + right, - wrong by the judge"
    return plot.sample_sheet(captions, columns, notes, title)


def _marks(judge: Judge, images: torch.Tensor, wanted: list[dict[str, str]]) -> list[str]:
    """'+' where the judge reads every wanted attribute off an image, else '-'."""
    return ["-+"[exact] for exact in right(judge.read(images), wanted)["exact"]]
