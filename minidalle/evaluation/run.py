"""Measure the run in a folder: find its data, its judge, its training images; write the pages."""

from pathlib import Path

from minidalle import data
from minidalle.config import Config, Typed, replace
from minidalle.data.streams import Stream
from minidalle.evaluation.candidates import draw_candidates
from minidalle.evaluation.judge import RECIPES, find_judge
from minidalle.evaluation.measure import Cases, cases_of, draw_all, evaluate, load_cases
from minidalle.evaluation.protocol import OVERLAP, paper_protocol, protocol_tables, write_protocol
from minidalle.evaluation.report import as_text, sheets, tables, write_report
from minidalle.evaluation.vote import write_vote
from minidalle.generate import Pipeline
from minidalle.models import read_model

N_TRAINING = 5000  # training images searched for copies …
N_PAPER = 50_000  # … and where section 3 of the paper is measured
N_PAIRS = 8  # pairs named on the terminal; the page names all


def evaluate_run(
    run: str | Path,
    out: str | Path,
    n: int = 128,
    candidates: int = 16,
    seeds: int = 1,
    seed: int = 0,
    device: str = "cpu",
    own: str = "",
    paper: bool = False,
    overlap: float = OVERLAP,
) -> str:
    """Measure the run in a folder and write report.html and report.json into `out`.

    n: captions of each kind for each of `seeds` random seeds. own: a folder of captioned images in
    place of the run's own data. paper: measure section 3 of the paper instead, into protocol.html
    and protocol.json, with `overlap` as there. Returns what to print.
    Raises ValueError for fewer than two captions, one candidate or one seed.
    """
    if n < 2 or candidates < 1 or seeds < 1:
        raise ValueError(f"too little to measure: {n=} (at least 2), {candidates=}, {seeds=}")
    pipeline, (_, config) = Pipeline.load(run, device=device), read_model(Path(run) / "dalle")
    if own:
        config = replace(config, data=replace(config.data, name="folder", folder=Typed(own)))
    cases = load_cases(replace(config, seed=seed), n * seeds)
    training = training_images(config, N_PAPER if paper else N_TRAINING)
    judge = find_judge(config, run if own == "" else out)
    drawn = draw_all(pipeline, cases, candidates, seeds, seed)
    if paper:
        recipe = config.data.name if config.data.name in RECIPES else "mnist"
        kinds = {
            kind: paper_protocol(
                pipeline, judge, some, drawn[kind], training, overlap, device, recipe
            )
            for kind, some in cases.items()
        }
        path, shown = write_protocol(out, kinds), protocol_tables(kinds)
    else:
        numbers = evaluate(pipeline, judge, cases, drawn, seeds, seed, training.images)
        pages = {}
        for kind, some in cases.items():
            pages |= sheets(pipeline, judge, kind, some, drawn[kind], training.images)
        path = write_report(out, f"Report of {Path(out).name}", numbers, pages)
        shown = tables(numbers, N_PAIRS)
    return f"{as_text(shown)}\nWrote {path} and {path.stem}.json about {run}."


def training_images(config: Config, n: int) -> Cases:
    """The first n training images of a data set, or of a stream, with their attributes if any."""
    dataset = data.load(config, "train")
    if isinstance(dataset, Stream):
        return Cases(*data.first(dataset, n))
    return cases_of(dataset, n)


def vote_between(runs: list[str], out: str | Path, n: int, seed: int, device: str = "cpu") -> Path:
    """Write the page of a blind vote between two runs, on n captions of the first one's data.

    Each draws one image a caption, not chosen by CLIP. Returns the page's path.
    """
    pipelines = [Pipeline.load(folder, device=device) for folder in runs]
    _, config = read_model(Path(runs[0]) / "dalle")
    captions = next(iter(load_cases(replace(config, seed=seed), n).values())).captions
    drawn = [draw_candidates(pipeline, captions, 1, seed).first() for pipeline in pipelines]
    return write_vote(out, captions, *drawn, names=runs, seed=seed)
