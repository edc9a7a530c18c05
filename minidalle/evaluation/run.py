"""Measure the run in a folder: find its data, its judge, its training images; write the pages."""

from pathlib import Path

from minidalle import data
from minidalle.config import Config, Typed, replace
from minidalle.data.streams import Stream
from minidalle.evaluation.judge import find_judge
from minidalle.evaluation.measure import Cases, cases_of, draw_all, load_cases
from minidalle.evaluation.protocol import OVERLAP, paper_protocol, protocol_tables, write_protocol
from minidalle.evaluation.report import as_text, report_run, tables
from minidalle.evaluation.vote import draw_vote
from minidalle.generate import Pipeline
from minidalle.models import read_model

N_TRAINING = 5000  # training images searched for copies
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
    protocol: str = "",
    overlap: float = OVERLAP,
) -> str:
    """Measure the run in a folder and write report.html and report.json into `out`.

    n: captions of each kind for each of `seeds` random seeds. own: a folder of captioned images in
    place of the run's own data. protocol: 'paper' measures section 3 of the paper instead, into
    protocol.html and protocol.json, with `overlap` as there. Returns what to print.
    Raises ValueError for another protocol.
    """
    if protocol not in ("", "paper"):
        raise ValueError(f"unknown protocol {protocol!r}; choose from paper")
    for name, value in (("n", n), ("candidates", candidates), ("seeds", seeds)):
        if value < 1:
            raise ValueError(f"{name} must be 1 or more, got {value}")
    pipeline, (_, config) = Pipeline.load(run, device=device), read_model(Path(run) / "dalle")
    if own:
        config = replace(config, data=replace(config.data, name="folder", folder=Typed(own)))
    cases = load_cases(replace(config, seed=seed), n * seeds)
    training = training_images(config)
    judge = find_judge(config, run if own == "" else out)
    if not protocol:
        numbers = report_run(
            pipeline, judge, out, training.images, cases, n, candidates, seeds, seed
        )
        shown = as_text(tables(numbers, N_PAIRS))
        return f"{shown}\nWrote {Path(out) / 'report.html'} and report.json about {run}."
    drawn = draw_all(pipeline, cases, candidates, seeds, seed)
    kinds = {
        kind: paper_protocol(pipeline, judge, some, drawn[kind], training, overlap, device=device)
        for kind, some in cases.items()
    }
    path = write_protocol(out, kinds)
    return f"{as_text(protocol_tables(kinds))}\nWrote {path} and protocol.json about {run}."


def training_images(config: Config) -> Cases:
    """The first training images of a data set, or of a stream, with their attributes if any."""
    dataset = data.load(config, "train")
    if isinstance(dataset, Stream):
        return Cases(*data.first(dataset, N_TRAINING))
    return cases_of(dataset, N_TRAINING)


def vote_between(runs: list[str], out: str | Path, n: int, seed: int, device: str = "cpu") -> Path:
    """Write the page of a blind vote between two runs, on n captions of the first one's data."""
    pipelines = {folder: Pipeline.load(folder, device=device) for folder in runs}
    _, config = read_model(Path(runs[0]) / "dalle")
    captions = next(iter(load_cases(replace(config, seed=seed), n).values())).captions
    return draw_vote(out, captions, pipelines, seed)
