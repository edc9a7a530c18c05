"""The whole of DALL-E on the toy world: train every stage, draw captions, measure what came out.

Source: Ramesh et al. 2021, arXiv:2102.12092, sections 2 and 3.
"""

import json
import time
from pathlib import Path

import torch
from torch import Tensor

from minidalle import plot, stages
from minidalle.config import Config
from minidalle.data import shapes
from minidalle.evaluation.candidates import rebuild
from minidalle.evaluation.judge import Judge
from minidalle.evaluation.measure import evaluate, table
from minidalle.files import write_text
from minidalle.generate import Pipeline

CAPTIONS = (
    "a small red heart on a navy background",
    "a large yellow star in the top left on a black background",
    "in the bottom right, a little cyan ring on white",
    "on a grey background, a big blue square in the middle",
    # Pairs of shape and colour that no training picture shows:
    "a large red star in the middle on a navy background",
    "a small green heart in the top right on a white background",
    "big pink square, bottom left, black background",
    "an orange hoop in the centre, large, on white",
)
CANDIDATES = 16
N_OTHERS = 4  # samples shown beside the best


def run(
    config: Config, folder: Path, judge_folder: Path, device: str = "cpu", fresh: bool = False
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
    numbers = evaluate(pipeline, judge, n=128, candidates=CANDIDATES, seed=config.seed)
    write_text(folder / "demo.json", json.dumps(numbers, indent=1))
    print(table(numbers))
    print(f"Training took {trained:.0f} s. The samples are in {path}: open it.")


def sheet(pipeline: Pipeline, judge: Judge, seed: int = 0):
    """Draw CAPTIONS: a true picture, its reconstruction, the best sample and others."""
    wanted = [_complete(shapes.read_caption(caption)) for caption in CAPTIONS]
    scenes = shapes.render(wanted)
    true, (rebuilt, _) = scenes.float() / 255, rebuild(pipeline, scenes)
    rows, scores = [], []
    for i, caption in enumerate(CAPTIONS):
        generator = torch.Generator().manual_seed(seed + i)
        images, score = pipeline.generate(
            caption, n=CANDIDATES, candidates=CANDIDATES, generator=generator, progress=False
        )
        rows.append(images.cpu())
        scores.append(score.tolist())
    drawn = torch.stack(rows)  # (captions, candidates, 3, H, W), best first
    # The others are spread over the ranks, the last one included: nobody hides the failures.
    ranks = torch.linspace(1, CANDIDATES - 1, N_OTHERS).round().int().tolist()
    columns = [("true", true), ("rebuilt", rebuilt), (f"best of {CANDIDATES}", drawn[:, 0])]
    columns += [(f"rank {r + 1}", drawn[:, r]) for r in ranks]
    notes = [
        ["", _mark(judge, rebuilt[i], wanted[i])]
        + [f"{scores[i][r]:.2f} {_mark(judge, drawn[i, r], _stated(i))}" for r in (0, *ranks)]
        for i in range(len(CAPTIONS))
    ]
    captions = [
        caption + ("\n(pair never seen in training)" if _is_new(wanted[i]) else "")
        for i, caption in enumerate(CAPTIONS)
    ]
    title = "CLIP score; + right, - wrong by the judge"
    return plot.sample_sheet(captions, columns, notes, title)


def _stated(i: int) -> dict[str, str]:
    return shapes.read_caption(CAPTIONS[i])


def _complete(attributes: dict[str, str]) -> dict[str, str]:
    """Fill what a caption leaves open, so that a true picture can be drawn."""
    return {"position": "middle"} | attributes


def _is_new(attributes: dict[str, str]) -> bool:
    return (attributes["shape"], attributes["colour"]) in shapes.HELD_OUT


def _mark(judge: Judge, image: Tensor, wanted: dict[str, str]) -> str:
    """'+' where the judge reads every wanted attribute off the picture, else '-'."""
    found = judge.read(image[None].float())
    return "+" if all(found[name][0] == value for name, value in wanted.items()) else "-"
