"""A blind vote between two runs, like the paper's: which picture is more real, which fits better?

`write_vote` makes one page that needs no server; whoever opens it answers and sends back a CSV.
Which run stands left is in a key file of its own, not in the page. N captions, S side in pixels.
Source: Ramesh et al. 2021, arXiv:2102.12092, section 3.1 and figure 7 (five voters, majority).
"""

import csv
import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor

from minidalle.evaluation.candidates import draw_pool
from minidalle.evaluation.metrics import estimate
from minidalle.evaluation.pages import STYLE, data_uri, encode_png
from minidalle.files import write_text
from minidalle.generate import Pipeline

QUESTIONS = {"realism": ("left", "right"), "match": ("left", "right", "neither")}
COLUMNS = ["vote", "voter", "item", "question", "answer"]


def draw_vote(
    folder: str | Path, captions: Sequence[str], pipelines: dict[str, Pipeline], seed: int = 0
) -> Path:
    """Draw one picture a caption with each of two runs, and write the page of the vote.

    pipelines maps the runs' names to what draws. Pictures are not chosen by CLIP.
    Returns the page's path. Raises ValueError unless there are two runs.
    """
    if len(pipelines) != 2:
        raise ValueError(f"a vote compares two different runs, got {len(pipelines)}")
    drawn = [draw_pool(p, list(captions), 1, seed).first() for p in pipelines.values()]
    return write_vote(folder, captions, *drawn, names=tuple(pipelines), seed=seed)


def write_vote(
    folder: str | Path,
    captions: Sequence[str],
    first: Tensor,
    second: Tensor,
    names: tuple[str, str],
    seed: int = 0,
) -> Path:
    """Write folder/vote.html and folder/vote_key.json.

    first and second (N, 3, S, S): the pictures of the two runs called `names`, one a caption.
    The order of captions, and which run stands left, are drawn from `seed`.
    Returns the page's path. Raises ValueError for numbers that differ or for equal names.
    """
    n = len(captions)
    if not n or len(first) != n or len(second) != n:
        raise ValueError(
            f"one picture of each run a caption, got {len(first)} and {len(second)} for {n}"
        )
    if names[0] == names[1]:
        raise ValueError(f"the two runs need different names, got {names[0]!r} twice")
    generator = torch.Generator().manual_seed(seed)
    swap = torch.rand(n, generator=generator) < 0.5
    order = torch.randperm(n, generator=generator).tolist()
    items = []
    for i in order:
        sides = (second[i], first[i]) if swap[i] else (first[i], second[i])
        left, right = (data_uri(encode_png(image)) for image in sides)
        items.append({"id": i, "caption": captions[i], "left": left, "right": right})
    folder = Path(folder)
    vote = hashlib.sha256(json.dumps([items, names]).encode()).hexdigest()[:12]
    key = {"vote": vote, "names": names, "left": [names[int(s)] for s in swap]}
    key["captions"] = list(captions)
    _write(folder / "vote_key.json", json.dumps(key, indent=1) + "\n")
    return _write(folder / "vote.html", _page(vote, items))


def _write(path: Path, text: str) -> Path:
    write_text(path, text)
    return path


def _page(vote: str, items: list[dict]) -> str:
    template = (
        resources.files("minidalle.evaluation").joinpath("vote.html").read_text(encoding="utf-8")
    )
    # "</script>" in a caption must not end the script.
    data = json.dumps({"vote": vote, "items": items}).replace("<", "\\u003c")
    return template.replace("/*STYLE*/", STYLE).replace("/*DATA*/null", data)


def read_votes(key_path: str | Path, csv_paths: Iterable[str | Path]) -> dict[str, dict]:
    """Count the majority of every caption and question over all voters.

    Returns for "realism" and "match": the share of captions won by each run, "neither" and "tied"
    with 95% intervals, and "voters". Of two answers of one voter the later one counts.
    Raises ValueError naming file and line where a row does not belong to this vote.
    """
    key = json.loads(Path(key_path).read_text(encoding="utf-8"))
    answers: dict[tuple, str] = {}  # (question, item, voter) -> run or 'neither'
    for path in csv_paths:
        for line, row in _rows(Path(path)):
            _check(row, key, f"{path}, line {line}")
            item = int(row["item"])
            answers[row["question"], item, row["voter"]] = _winner(row["answer"], item, key)
    if not answers:
        raise ValueError("no votes: the files hold no answers")
    return {question: _majorities(question, answers, key["names"]) for question in QUESTIONS}


def _rows(path: Path) -> list[tuple[int, dict]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != COLUMNS:
            raise ValueError(f"{path}: the columns must be {','.join(COLUMNS)}")
        return [(reader.line_num, row) for row in reader]


def _check(row: dict, key: dict, where: str) -> None:
    if row["vote"] != key["vote"]:
        raise ValueError(f"{where}: belongs to vote {row['vote']!r}, not to {key['vote']!r}")
    allowed = QUESTIONS.get(row["question"])
    if allowed is None or row["answer"] not in allowed:
        raise ValueError(f"{where}: {row['question']!r} cannot be answered {row['answer']!r}")
    if not row["item"].isdecimal() or int(row["item"]) >= len(key["left"]):
        raise ValueError(f"{where}: there is no item {row['item']!r}")


def _winner(answer: str, item: int, key: dict) -> str:
    left = key["left"][item]
    right = next(name for name in key["names"] if name != left)
    return {"left": left, "right": right}.get(answer, answer)


def _majorities(question: str, answers: dict[tuple, str], names: Sequence[str]) -> dict:
    ballots = defaultdict(Counter)
    for (asked, item, _), winner in answers.items():
        if asked == question:
            ballots[item][winner] += 1
    won = Counter(_majority(ballot) for ballot in ballots.values())
    outcomes = (*names, "neither", "tied") if "neither" in QUESTIONS[question] else (*names, "tied")
    n = len(ballots)
    shares = {name: estimate(won[name] / n, n) for name in outcomes} if n else {}
    return {"voters": len({v for q, _, v in answers if q == question}), "captions": n, **shares}


def _majority(ballot: Counter) -> str:
    (best, count), *rest = ballot.most_common(2)
    return "tied" if rest and rest[0][1] == count else best


def describe(result: dict[str, dict]) -> str:
    """Put the outcome of `read_votes` into one line a question."""
    lines = []
    for question, found in result.items():
        parts = [
            f"{name} {100 * v['share']:.1f}% [{100 * v['low']:.1f}, {100 * v['high']:.1f}]"
            for name, v in found.items()
            if isinstance(v, dict)
        ]
        count = f"{found['captions']} captions, {found['voters']} voters"
        lines.append(f"{question}: {', '.join(parts)} ({count})")
    return "\n".join(lines)
