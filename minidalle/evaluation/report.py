"""One page with everything that was measured of a run, and the same numbers as JSON.

N images, S side in pixels. Source: the figures of Ramesh et al. 2021, arXiv:2102.12092, section 3:
samples, curves over candidates, distances over blur radii.
"""

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from torch import Tensor

from minidalle import plot
from minidalle.evaluation import metrics
from minidalle.evaluation.candidates import Candidates, clip_features, reconstruct
from minidalle.evaluation.judge import Judge
from minidalle.evaluation.measure import Cases
from minidalle.files import write_text
from minidalle.generate import Pipeline
from minidalle.plot import Figure

N_SHOWN = 8  # captions on a sheet
N_NEAREST = 3  # training images beside each sample
STYLE = """
body { font: 16px/1.45 system-ui, sans-serif; max-width: 75rem; margin: 1.5rem auto;
  padding: 0 1rem; color: #1a1a1a; background: #fff; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2rem; }
pre { overflow-x: auto; }
img { max-width: 100%; }
"""
NOTE = (
    "Shares are percent with 95% intervals that count pairs of attributes, not captions. One "
    "sample is the mean over all candidates; best of k is the mean over all subsets of size k."
)
ROWS = {
    "true": "true images",
    "rebuilt": "reconstructions",
    "one": "one sample",
    "best": "best of {}",
}
Table = tuple[str, list[str], list[list[str]]]  # title, head, rows
TITLES = {
    f"{kind}{count}": f"{title}{words}"
    for kind, title in (("seen", "Seen pairs"), ("held_out", "Held-out pairs"))
    for count, words in (("", ""), (" one", ", one digit"), (" two", ", two digits"))
}


def sheets(
    pipeline: Pipeline, judge: Judge | None, name: str, cases: Cases, drawn: Candidates,
    training: Tensor,
) -> dict[str, Figure]:  # fmt: skip
    """Show the samples of one kind of captions, and the images of `training` nearest to them.

    training (M, 3, S, S) uint8. Returns figures by their headings.
    """
    title, samples = TITLES.get(name, name), drawn.first()[:N_SHOWN]
    rebuilt, _ = reconstruct(pipeline, cases.images[:N_SHOWN])
    features = {}
    if pipeline.reranker is not None:
        features["CLIP"] = [clip_features(pipeline, x) for x in (samples, training)]
    if judge is not None:
        features["the judge"] = [judge.all_features(x) for x in (samples, training)]
    captions = cases.captions[:N_SHOWN]
    return {
        f"{title}: samples": sample_sheet(cases, rebuilt, drawn),
        f"{title}: nearest training images": nearest_sheet(captions, samples, training, features),
    }


def write_report(
    folder: str | Path, title: str, numbers: Mapping, sheets: Mapping[str, Figure] | None = None
) -> Path:
    """Write folder/report.html and folder/report.json from what `measure.evaluate` returned.

    sheets maps headings to sheets of images (`sample_sheet`, `nearest_sheet`).
    Returns the page's path. Raises ValueError for a number that JSON cannot hold.
    """
    shown = ", ".join(f"{k} {v}" for k, v in numbers["settings"].items())
    parts = [f"<p>Settings: {escape(shown)}. {NOTE}</p>"]
    parts.append(text_html(tables(numbers)))
    for kind, found in numbers["kinds"].items():
        if "frechet" in found:
            axes = ("blur radius, pixels", "judge's Fréchet distance", TITLES.get(kind, kind))
            parts.append(curves(found["frechet"], *axes))
        for name, counts in found.get("confusion", {}).items():
            rows = [[wanted, *map(str, row.values())] for wanted, row in counts.items()]
            what = f"{TITLES.get(kind, kind)}, {name}: what the judge read, all candidates"
            parts.append(text_html([(what, ["asked for", *counts], rows)]))
    best = {
        TITLES.get(kind, kind): {k: v["share"] for k, v in found["best_of"].items()}
        for kind, found in numbers["kinds"].items()
        if "best_of" in found
    }
    if best:  # figure 9c of the paper, for this run
        parts.append(curves(best, "candidates", "exact, best by CLIP", log="x"))
    for heading, sheet in (sheets or {}).items():
        parts.append(f"<h2>{escape(heading)}</h2>{figure_html(sheet, heading)}")
    return write_pages(folder, "report", title, numbers, parts)


def write_pages(
    folder: str | Path, name: str, title: str, numbers: Mapping, parts: Sequence[str]
) -> Path:
    """Write folder/name.html from its parts and folder/name.json. Returns the page's path."""
    folder = Path(folder)
    text = json.dumps(numbers, indent=1, allow_nan=False) + "\n"
    end = f"<p>The same numbers, for programs: {name}.json.</p>"
    write_text(folder / f"{name}.json", text)
    write_text(folder / f"{name}.html", page(title, [f"<h1>{escape(title)}</h1>", *parts, end]))
    return folder / f"{name}.html"


def page(title: str, parts: Sequence[str], style: str = "") -> str:
    """Return a whole HTML page that needs no other file."""
    head = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}{style}</style>\n</head>\n<body>\n"
    )
    return head + "\n".join(parts) + "\n</body>\n</html>\n"


def tables(numbers: Mapping, most: int | None = None) -> list[Table]:
    """Lay the numbers of `measure.evaluate` out; most: of the pairs, the worst so many."""
    found_tables: list[Table] = []
    titles = {key: t.format(numbers["settings"].get("candidates")) for key, t in ROWS.items()}
    first = numbers["settings"].get("seed", 0)
    for kind, found in numbers["kinds"].items():
        name = f"{TITLES.get(kind, kind)}, {found['n']} captions"

        def add(what: str, head: list[str], rows: list[list[str]], name: str = name) -> None:
            if rows:
                found_tables.append((f"{name}: {what}", head, rows))

        rows = [
            [title, *(_percent(mark) for mark in found[key].values())]
            for key, title in titles.items()
            if "one" in found and key in found
        ]
        add("judged right, %", ["images", *found.get("one", ())], rows)
        ways = [way for way in ("one", "best") if way in found]
        rows = [
            [pair, str(row["n"]), *(f"{100 * row[way]:.1f}" for way in ways)]
            for pair, row in found.get("by_pair", {}).items()
        ]
        head = ["pair", "captions", *(titles[way] for way in ways)]
        add("exact by pair, %, the worst first", head, rows[:most])
        rows = [
            [titles[way], *(f"{100 * share:.1f}" for share in shares)]
            for way, shares in found.get("by_seed", {}).items()
            if len(shares) > 1
        ]
        head = ["images", *(str(first + i) for i in range(len(rows[0]) - 1))] if rows else []
        add("exact by seed, %", head, rows)
        keys = [k for k in ("likelihood", "codebook", "reconstruction") if k in found]
        costs = {k: f"{v:.3f}" for key in keys for k, v in found[key].items()}
        rows = [[k.replace("_", " "), v] for k, v in costs.items()]
        add("what an image costs and keeps", ["", ""], rows)
        rows = [[k, f"{v:.3f}"] for k, v in found.get("clip_score", {}).items()]
        add("CLIP score", ["images", "cosine"], rows)
        for key, what in (
            ("frechet", "Fréchet distance by the judge's features (no FID), over blur radius"),
            ("judge_score", "inception score formula on the judge's answers"),
        ):
            rows = [[k, *(f"{x:.4g}" for x in v.values())] for k, v in found.get(key, {}).items()]
            add(what, ["images", *next(iter(found.get(key, {"": ()}).values()))], rows)
    return found_tables


def as_text(some: Sequence[Table]) -> str:
    """Lay tables out in columns, for a terminal."""
    lines = []
    for title, head, rows in some:
        widths = [max(map(len, column)) + 2 for column in zip(head, *rows, strict=True)]
        lines.append(title)
        for row in (head, *rows):
            cells = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
            lines.append(f"  {row[0].ljust(widths[0])}" + "".join(cells))
    return "\n".join(lines)


def text_html(some: Sequence[Table]) -> str:
    """Lay tables out for a page as for a terminal."""
    return f"<pre>{escape(as_text(some))}</pre>"


def _percent(mark: Mapping) -> str:
    return f"{100 * mark['share']:.1f} [{100 * mark['low']:.0f}, {100 * mark['high']:.0f}]"


def curves(
    lines: Mapping[str, Mapping[str, float]], x: str, y: str, title: str = "", log: str = ""
) -> str:
    """Return a figure of lines, each a mapping from x to y, as HTML."""
    points = {name: ([float(k) for k in v], list(v.values())) for name, v in lines.items()}
    return figure_html(plot.show_curves(points, x, y, title, log), f"{y} over {x}. {title}")


def figure_html(figure: Figure, alt: str) -> str:
    """Return a figure as HTML that carries it inside."""
    return f'<img src="{plot.data_uri(figure)}" alt="{escape(alt)}" width="{figure.bbox.width:g}">'


def sample_sheet(cases: Cases, rebuilt: Tensor, drawn: Candidates) -> Figure:
    """Lay out captions, true images, reconstructions, one sample, the best one."""
    kinds = {"true": cases.images, "rebuilt": rebuilt, "one sample": drawn.first()}
    columns = [*kinds.items(), ("best", drawn.best())]
    captions = cases.captions[:N_SHOWN]
    return plot.sample_sheet(captions, columns, [[""] * len(columns)] * len(captions))


def nearest_sheet(
    captions: Sequence[str],
    samples: Tensor,
    training: Tensor,
    features: Mapping[str, Sequence[Tensor]] | None = None,
) -> Figure:
    """Lay out samples beside the training images nearest to them: is anything copied?

    samples (N, 3, S, S) in [0, 1]; training (M, 3, S, S) uint8; features: those of both, (N, F)
    and (M, F), by the name of who made them. The numbers are root mean squared differences of
    pixels in [0, 1], then cosines.
    """
    found = {"pixels": metrics.nearest_pixels(samples, training, N_NEAREST)}
    for name, both in (features or {}).items():
        found[name] = metrics.nearest_features(*both, N_NEAREST)
    columns, notes = [("sample", samples)], [[""] for _ in samples]
    for name, (values, index) in found.items():
        for k in range(N_NEAREST):
            columns.append((f"{name}, {k + 1}", training[index[:, k]]))  # (N, 3, S, S)
            for note, value in zip(notes, values[:, k].tolist(), strict=True):
                note.append(f"{value:.3f}")
    return plot.sample_sheet(captions, columns, notes)
