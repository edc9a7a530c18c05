"""One page with everything that was measured of a run, and the same numbers as JSON.

N pictures, S side in pixels. Source: the figures of Ramesh et al. 2021, arXiv:2102.12092,
section 3: samples, curves over candidates, distances over blur radii.
"""

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from torch import Tensor

from minidalle import plot
from minidalle.evaluation import metrics
from minidalle.evaluation.candidates import Pool, encode_pictures, rebuild
from minidalle.evaluation.judge import Judge
from minidalle.evaluation.measure import ROWS, Cases, draw_pools, evaluate, toy_cases
from minidalle.evaluation.pages import STYLE, data_uri, encode_png, figure_uri
from minidalle.files import write_text
from minidalle.generate import Pipeline

N_SHOWN = 8  # captions on a sheet
N_NEAREST = 3  # training pictures beside each sample


def report_run(
    pipeline: Pipeline,
    judge: Judge | None,
    folder: str | Path,
    training: Tensor,
    cases: Mapping[str, Cases] | None = None,
    n: int = 256,
    candidates: int = 16,
    seed: int = 0,
) -> dict:
    """Measure a run, show its samples, and look for copies among training (M, 3, S, S) uint8.

    Writes folder/report.html and folder/report.json. Returns the numbers; arguments and errors
    as `evaluation.evaluate`.
    """
    cases = toy_cases(n, seed) if cases is None else cases
    pools = draw_pools(pipeline, cases, candidates, seed)
    numbers = evaluate(pipeline, judge, cases, pools, seed=seed)
    sheets = {}
    for kind, some in cases.items():
        name, samples = _name(kind).rstrip(":"), pools[kind].first()[:N_SHOWN]
        rebuilt, _ = rebuild(pipeline, some.images[:N_SHOWN])
        sheets[f"{name}: samples"] = sample_sheet(some, rebuilt, pools[kind])
        features = None
        if pipeline.reranker is not None:
            features = (encode_pictures(pipeline, samples), encode_pictures(pipeline, training))
        sheets[f"{name}: nearest training pictures"] = nearest_sheet(samples, training, features)
    write_report(folder, f"Report of {Path(folder).name}", numbers, sheets)
    return numbers


def write_report(
    folder: str | Path, title: str, numbers: Mapping, sheets: Mapping[str, str] | None = None
) -> Path:
    """Write folder/report.html and folder/report.json from what `evaluation.evaluate` returned.

    sheets maps headings to more HTML: sheets of pictures (`sample_sheet`, `nearest_sheet`).
    Returns the page's path. Raises ValueError for a number that JSON cannot hold.
    """
    folder = Path(folder)
    text = json.dumps(numbers, indent=1, allow_nan=False) + "\n"
    parts = [_settings(numbers["settings"])]
    for kind, found in numbers["kinds"].items():
        parts.append(f"<h2>{escape(_name(kind))} captions ({found['n']})</h2>")
        parts += _kind(found, numbers["settings"]["candidates"])
    parts += _curves(numbers["kinds"])
    for heading, sheet in (sheets or {}).items():
        parts.append(f"<h2>{escape(heading)}</h2>{sheet}")
    parts.append("<p>The same numbers, for programs: report.json.</p>")
    _write(folder / "report.json", text)
    return _write(folder / "report.html", _page(title, parts))


def _write(path: Path, text: str) -> Path:
    write_text(path, text)
    return path


def _page(title: str, parts: Sequence[str]) -> str:
    head = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>"
    )
    body = "\n".join(parts)
    return f"{head}<h1>{escape(title)}</h1>\n{body}\n</body></html>\n"


def _name(kind: str) -> str:
    return {"seen": "Seen pairs:", "held_out": "Held-out pairs:"}.get(kind, kind)


def _settings(settings: Mapping) -> str:
    shown = ", ".join(f"{k} {v}" for k, v in settings.items())
    return (
        f"<p>Settings: {escape(shown)}. Shares are percent with 95% intervals (Wilson). One sample "
        "is the mean over all candidates; best of k is the mean over all subsets of size k.</p>"
    )


def _kind(found: Mapping, candidates: int) -> list[str]:
    parts = []
    if "one" in found:
        parts.append(_accuracy_table(found, candidates))
    cost, use = found["likelihood"], found["codebook"]
    rows = [[k.replace("_", " "), f"{v:.3f}"] for k, v in (*cost.items(), *use.items())]
    parts.append(_table(["what a picture costs", ""], rows))
    if "clip_score" in found:
        rows = [[k, f"{v:.3f}"] for k, v in found["clip_score"].items()]
        parts.append(_table(["pictures", "CLIP score"], rows))
    for key, what in (
        ("frechet", "Fréchet distance by the judge's features (no FID), blur radius"),
        ("judge_score", "Inception score formula on the judge's answers"),
    ):
        if key in found:
            columns = list(next(iter(found[key].values())))
            rows = [[k, *(f"{v[c]:.3g}" for c in columns)] for k, v in found[key].items()]
            parts.append(_table(["pictures", *columns], rows, what))
    for name, table in found.get("confusion", {}).items():
        parts.append(_confusion(name, table))
    return parts


def _accuracy_table(found: Mapping, candidates: int) -> str:
    names = list(found["one"])
    rows = []
    for key, title in ROWS.items():
        if key in found:
            cells = [_share(found[key][n]) for n in names]
            rows.append([title.format(candidates), *cells])
    return _table(["judged right, %", *names], rows)


def _share(mark: Mapping) -> str:
    low, high = 100 * mark["low"], 100 * mark["high"]
    return f"{100 * mark['share']:.1f} [{low:.1f}, {high:.1f}]"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "") -> str:
    top = f"<caption>{escape(caption)}</caption>" if caption else ""
    first = "".join(f'<th scope="col">{escape(h)}</th>' for h in head)
    lines = "".join(
        "<tr>" + "".join(f"<td>{escape(c)}</td>" for c in row) + "</tr>" for row in rows
    )
    return f"<table>{top}<tr>{first}</tr>{lines}</table>"


def _confusion(name: str, table: Mapping[str, Mapping[str, int]]) -> str:
    """A table whose cells are the darker the more of their row they hold."""
    columns = list(table)
    head = "".join(f'<th scope="col">{escape(c)}</th>' for c in ("asked for", *columns))
    lines = []
    for wanted, row in table.items():
        total = max(sum(row.values()), 1)
        cells = "".join(
            f'<td style="background: rgba(0, 114, 178, {0.6 * row[c] / total:.3f})">{row[c]}</td>'
            for c in columns
        )
        lines.append(f'<tr><th scope="row">{escape(wanted)}</th>{cells}</tr>')
    caption = f"{name}: what the judge read, all candidates"
    body = "".join(lines)
    return f"<table><caption>{escape(caption)}</caption><tr>{head}</tr>{body}</table>"


def _curves(kinds: Mapping[str, Mapping]) -> list[str]:
    """Figure 9 of the paper, for this run: over candidates, and over blur radii."""
    parts = []
    ranks = {_name(k).rstrip(":"): f["best_of"] for k, f in kinds.items() if "best_of" in f}
    if ranks:
        lines = {
            name: ([int(k) for k in curve], [v["share"] for v in curve.values()])
            for name, curve in ranks.items()
        }
        figure = plot.show_curves(lines, "candidates", "exact, best by CLIP", log="x")
        parts.append(_image(figure, "Share of exact pictures over the number of candidates"))
    for kind, found in kinds.items():
        if "frechet" in found:
            lines = {
                name: ([int(r) for r in row], list(row.values()))
                for name, row in found["frechet"].items()
            }
            title = _name(kind).rstrip(":")
            figure = plot.show_curves(lines, "blur radius, pixels", "toy Fréchet distance", title)
            parts.append(_image(figure, f"Fréchet distance over blur radii, {title}"))
    return parts


def _image(figure, alt: str) -> str:
    return f'<p><img src="{figure_uri(figure)}" alt="{escape(alt)}" width="520"></p>'


def sample_sheet(cases: Cases, rebuilt: Tensor, pool: Pool, n: int = N_SHOWN) -> str:
    """Lay out captions, true pictures, reconstructions, one sample, the best one, as HTML."""
    one, best = pool.first(), pool.best()
    rows = []
    for i, caption in enumerate(cases.captions[:n]):
        pictures = (cases.images[i], rebuilt[i], one[i], best[i])
        rows.append([escape(caption), *(_picture(x) for x in pictures)])
    return _picture_table(["caption", "true", "rebuilt", "one sample", "best sample"], rows)


def nearest_sheet(
    samples: Tensor, training: Tensor, features: tuple[Tensor, Tensor] | None = None
) -> str:
    """Lay out samples beside the training pictures nearest to them: is anything copied?

    samples (N, 3, S, S) in [0, 1]; training (M, 3, S, S) uint8; features: CLIP's unit vectors of
    both, (N, E) and (M, E). The numbers are root mean squared differences of pixels in [0, 1],
    then cosines.
    """
    distance, index = metrics.nearest_pictures(samples, training, N_NEAREST)
    found = [("by pixels", distance, index)]
    if features is not None:
        found.append(("by CLIP", *metrics.nearest_features(*features, N_NEAREST)))
    rows = []
    for i, sample in enumerate(samples):
        cells = [_picture(sample)]
        for _, value, index in found:
            cells += [
                f"{_picture(training[j])}<br>{v:.3f}"
                for v, j in zip(value[i].tolist(), index[i].tolist(), strict=True)
            ]
        rows.append(cells)
    head = ["sample"] + [f"{name}, {k + 1}" for name, *_ in found for k in range(N_NEAREST)]
    return _picture_table(head, rows)


def _picture(image: Tensor) -> str:
    return f'<img class="pixels" width="64" height="64" alt="" src="{data_uri(encode_png(image))}">'


def _picture_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    first = "".join(f'<th scope="col">{escape(h)}</th>' for h in head)
    lines = "".join("<tr>" + "".join(f"<td>{c}</td>" for c in row) + "</tr>" for row in rows)
    return f"<table><tr>{first}</tr>{lines}</table>"
