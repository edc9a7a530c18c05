"""A blind vote between two runs, like the paper's: which image is more real, which fits better?

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

from minidalle import plot
from minidalle.evaluation.metrics import estimate
from minidalle.evaluation.report import page
from minidalle.files import write_text

QUESTIONS = {"realism": ("left", "right"), "match": ("left", "right", "neither")}
COLUMNS = ["vote", "voter", "item", "question", "answer"]
STYLE = """
.pair { display: flex; gap: 2rem; flex-wrap: wrap; margin: 1rem 0; }
figure { margin: 0; text-align: center; }
figure img { width: 16rem; height: 16rem; border: 1px solid #888; display: block; }
fieldset { border: 1px solid #bbb; margin: .6rem 0; max-width: 36rem; }
label { display: inline-block; padding: .3rem 1.2rem .3rem 0; }
button { font: inherit; padding: .4rem 1rem; margin-right: .5rem; }
button:focus-visible, input:focus-visible { outline: 3px solid #0072b2; }
#caption { font-size: 1.25rem; font-weight: 600; }
"""


def write_vote(
    folder: str | Path,
    captions: Sequence[str],
    first: Tensor,
    second: Tensor,
    names: Sequence[str],
    seed: int = 0,
) -> Path:
    """Write folder/vote.html and folder/vote_key.json.

    first and second (N, 3, S, S): the images of the two runs called `names`, one a caption.
    The order of captions, and which run stands left, are drawn from `seed`.
    Returns the page's path. Raises ValueError for numbers that differ or for equal names.
    """
    n = len(captions)
    if not n or len(first) != n or len(second) != n:
        raise ValueError(
            f"one image of each run a caption, got {len(first)} and {len(second)} for {n}"
        )
    if names[0] == names[1]:
        raise ValueError(f"a vote compares two different runs, got {names[0]!r} twice")
    # Shuffle the captions, and let a coin say for each which run stands left.
    generator = torch.Generator().manual_seed(seed)
    swap = torch.rand(n, generator=generator) < 0.5
    items = []
    for i in torch.randperm(n, generator=generator).tolist():
        sides = (second[i], first[i]) if swap[i] else (first[i], second[i])
        left, right = (plot.data_uri(image) for image in sides)
        items.append({"id": i, "caption": captions[i], "left": left, "right": right})
    vote = hashlib.sha256(json.dumps([items, names]).encode()).hexdigest()[:12]
    key = {"vote": vote, "names": names, "left": [names[int(s)] for s in swap]}
    # "</script>" in a caption must not end the script.
    content = json.dumps({"vote": vote, "items": items}).replace("<", "\\u003c")
    body = resources.files("minidalle.evaluation").joinpath("vote.html").read_text(encoding="utf-8")
    path = Path(folder) / "vote.html"
    key_text = json.dumps(key | {"captions": list(captions)}, indent=1) + "\n"
    write_text(path.with_name("vote_key.json"), key_text)
    parts = [body.replace("/*DATA*/null", content)]
    write_text(path, page("Which image is better?", parts, STYLE))
    return path


def read_votes(key_path: str | Path, csv_paths: Iterable[str | Path]) -> dict[str, dict]:
    """Count the majority of every caption and question over all voters.

    Returns for "realism" and "match": the share of captions won by each run, "neither" and "tied"
    with 95% intervals, and "voters". Of two answers of one voter the later one counts.
    Raises ValueError naming file and line where a row does not belong to this vote.
    """
    key = _read_key(Path(key_path))
    answers: dict[tuple, str] = {}  # (question, item, voter) -> run or 'neither'
    for path in csv_paths:
        with Path(path).open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if reader.fieldnames != COLUMNS:
                raise ValueError(f"{path}: the columns must be {','.join(COLUMNS)}")
            for row in reader:
                _check(row, key, f"{path}, line {reader.line_num}")
                item, (a, b) = int(row["item"]), key["names"]
                left = key["left"][item]
                runs = {"left": left, "right": b if left == a else a, "neither": "neither"}
                answers[row["question"], item, row["voter"]] = runs[row["answer"]]
    if not answers:
        raise ValueError("no votes: the files hold no answers")
    return {question: _majorities(question, answers, key["names"]) for question in QUESTIONS}


def _read_key(path: Path) -> dict:
    """Read vote_key.json. Raises ValueError where it is something else."""
    try:
        key = json.loads(path.read_text(encoding="utf-8"))
        if {*key["left"]} <= {*key["names"]} and len(key["names"]) == 2 and key["vote"]:
            return key
    except (ValueError, KeyError, TypeError):
        pass
    raise ValueError(f"{path} is not the vote_key.json of a vote")


def _check(row: dict, key: dict, where: str) -> None:
    """Raise ValueError, naming file and line, where a row does not belong to this vote."""
    if row["vote"] != key["vote"]:
        raise ValueError(f"{where}: belongs to vote {row['vote']!r}, not to {key['vote']!r}")
    if row["answer"] not in QUESTIONS.get(row["question"], ()):
        raise ValueError(f"{where}: {row['question']!r} cannot be answered {row['answer']!r}")
    if not row["item"].isdecimal() or int(row["item"]) >= len(key["left"]):
        raise ValueError(f"{where}: there is no item {row['item']!r}")


def _majorities(question: str, answers: dict[tuple, str], names: Sequence[str]) -> dict:
    # Collect the ballots of each caption; the most frequent answer wins it, unless two share that.
    ballots, voters = defaultdict(Counter), set()
    for (asked, item, voter), winner in answers.items():
        if asked == question:
            ballots[item][winner] += 1
            voters.add(voter)
    winners = []
    for ballot in ballots.values():
        (best, count), *rest = ballot.most_common(2)
        winners.append("tied" if rest and rest[0][1] == count else best)
    outcomes = [*names, *(o for o in ("neither",) if o in QUESTIONS[question]), "tied"]
    shares = {o: estimate([w == o for w in winners]) for o in outcomes} if winners else {}
    return {"voters": len(voters), "captions": len(winners), **shares}


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
