"""Section 3 of the paper as a protocol, on any data set of images with captions.

Every caption is drawn once: Fréchet distance and inception score, with both sides blurred alike.
The same against the number of candidates that CLIP chose from. Test images that training images
resemble too much are taken out, and everything is measured again. Where images have classes, a
network learns them from samples only. C captions, P candidates a caption, S side in pixels.
Source: Ramesh et al. 2021, arXiv:2102.12092, section 3.1, figure 9, appendix F; Ravuri and Vinyals
2019, arXiv:1905.10887 (classification accuracy score).
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from minidalle import plot
from minidalle.evaluation import metrics
from minidalle.evaluation.candidates import Candidates, clip_features
from minidalle.evaluation.judge import Judge, train_judge
from minidalle.evaluation.measure import Cases, judge_score
from minidalle.evaluation.report import html_table, image, page
from minidalle.files import write_text
from minidalle.generate import Pipeline

Measure = Callable[[Tensor, Tensor], dict[str, float]]  # true, samples -> numbers by name
OVERLAP = 0.95  # cosine from which a training image counts as the same image
CAS_STEPS = 600
QUANTILES = (0.5, 0.9, 0.99, 1.0)


def choose_measure(
    pipeline: Pipeline, judge: Judge | None, device: str = "cpu"
) -> tuple[str, Measure]:
    """Return whose features measure distances, and the function that does: the best there is.

    Inception's through torch-fidelity where its weights are, then the judge's, then CLIP's.
    Raises ValueError, saying how to get Inception, where a run has none of the three.
    """
    try:
        metrics.find_inception()
        return "Inception-v3", lambda a, b: metrics.inception_metrics(a, b, device)
    except ValueError:
        if judge is None and pipeline.reranker is None:
            raise
    if judge is not None:
        widest = max(judge.values, key=lambda name: len(judge.values[name]))

        def by_judge(true: Tensor, samples: Tensor) -> dict[str, float]:
            score = judge_score(judge, samples)[widest]
            distance = _distance(judge.all_features, true, samples)
            return {"frechet": distance, f"score of {widest}": score}

        return "the judge", by_judge

    def by_clip(true: Tensor, samples: Tensor) -> dict[str, float]:
        return {"frechet": _distance(lambda x: clip_features(pipeline, x), true, samples)}

    return "CLIP", by_clip


def _distance(features: Callable[[Tensor], Tensor], true: Tensor, samples: Tensor) -> float:
    return metrics.frechet_distance(*(metrics.moments(features(x)) for x in (true, samples)))


def paper_protocol(
    pipeline: Pipeline,
    judge: Judge | None,
    cases: Cases,
    drawn: Candidates,
    training: Cases,
    overlap: float = OVERLAP,
    cas_steps: int = CAS_STEPS,
    device: str = "cpu",
) -> dict:
    """Return the numbers of the paper's section 3 for one kind of captions, ready for JSON.

    drawn: candidates of every caption of `cases`; training: true images (M, 3, S, S) to compare
    with, a different set. Raises ValueError for fewer than two captions, and where `overlap` leaves
    fewer than two.
    """
    whose, ruler = choose_measure(pipeline, judge, device)
    found = {
        "settings": {"features": whose, "captions": len(cases.captions), "overlap": overlap},
        "all": _section(ruler, cases, drawn, training),
    }
    # Take out the test images that the training set nearly holds, and measure again.
    who, cosine = nearest_training(pipeline, judge, cases.images, training.images)
    keep = (cosine < overlap).nonzero()[:, 0]
    if len(keep) < 2:
        raise ValueError(f"{overlap=} leaves {len(keep)} of {len(cosine)} test images: raise it")
    found["overlap"] = {
        "features": who,
        "removed": len(cosine) - len(keep),
        "cosine": {f"{q:.0%}": torch.quantile(cosine, q).item() for q in QUANTILES},
    }
    if len(keep) < len(cosine):
        rest = Candidates(drawn.images[keep], drawn.scores[keep])
        found["without overlap"] = _section(ruler, take(cases, keep.tolist()), rest, training)
    if cases.wanted is not None and training.attributes is not None:
        found["cas"] = accuracy_score(cases, drawn, training, judge, cas_steps)
    return found


def take(cases: Cases, rows: list[int]) -> Cases:
    """The cases of some rows only."""
    lists = (
        [values[i] for i in rows] if values is not None else None
        for values in (cases.captions, cases.wanted, cases.attributes)
    )
    return Cases(cases.images[rows], *lists)


@torch.inference_mode()
def nearest_training(
    pipeline: Pipeline, judge: Judge | None, images: Tensor, training: Tensor
) -> tuple[str, Tensor]:
    """Return whose features were compared, and each image's cosine to its nearest one: (N,).

    CLIP's as in the paper, else the judge's. Raises ValueError where there is neither.
    """
    if pipeline.reranker is not None:
        who, both = "CLIP", [clip_features(pipeline, x) for x in (images, training)]
    elif judge is not None:
        who, both = "the judge", [judge.all_features(x) for x in (images, training)]
    else:
        raise ValueError("overlap with the training set is found by CLIP or a judge: train `clip`")
    return who, metrics.nearest_features(*both)[0][:, 0]


@torch.inference_mode()
def _section(ruler: Measure, cases: Cases, drawn: Candidates, training: Cases) -> dict:
    """Distances and scores over blur radii, and over the candidates that CLIP chose from."""
    true = cases.images / 255
    others = training.images[: len(true)] / 255
    sets = {"one sample": drawn.first()}
    if len(others) == len(true):  # distances fall with the number of images
        sets["real images"] = others
    ranked = not drawn.scores.isnan().any()
    sizes = metrics.powers_of_two(drawn.scores.shape[1]) if ranked else []
    if ranked:
        sets[f"best of {sizes[-1]}"] = drawn.best(sizes[-1])
    blurred = {}
    for radius in metrics.BLUR_RADII:
        target = metrics.gaussian_blur(true, radius)
        for name, images in sets.items():
            numbers = ruler(target, metrics.gaussian_blur(images, radius))
            blurred.setdefault(name, {})[str(radius)] = numbers
    chosen = {}
    for k in sizes:
        clip_score = drawn.scores[:, :k].max(1).values.mean().item()
        chosen[str(k)] = ruler(true, drawn.best(k)) | {"CLIP score": clip_score}
    return {"n": len(true), "blur": blurred, "best_of": chosen}


def accuracy_score(
    cases: Cases, drawn: Candidates, training: Cases, judge: Judge | None, steps: int
) -> dict[str, dict]:
    """Train the judge's network on samples only, and on as many true images; test on true images.

    A caption is its samples' label. Attributes that some caption leaves open are left out.
    Returns for "samples" and "real images" the accuracy of each attribute on `cases`.
    """
    P = drawn.scores.shape[1]
    names = set.intersection(*(set(w) for w in cases.wanted)) & set(training.attributes[0])

    def only(rows) -> list[dict[str, str]]:
        return [{name: row[name] for name in sorted(names)} for row in rows]

    labels = [label for label in only(cases.wanted) for _ in range(P)]
    sets = {
        "samples": (drawn.images.flatten(0, 1), labels),
        "real images": (training.images[: len(labels)], only(training.attributes[: len(labels)])),
    }
    network = {} if judge is None else {"widths": judge.widths, "blocks": judge.n_blocks}
    found = {}
    for name, (images, attributes) in sets.items():
        student = train_judge(images, attributes, steps, **network)
        truth = only(cases.attributes)
        found[name] = metrics.accuracy(student.read(cases.images), truth, cases.pairs())
    return found


def protocol_tables(numbers: Mapping) -> list[tuple[str, list[str], list[list[str]]]]:
    """Return title, head and rows of each table of `paper_protocol`'s numbers."""
    settings, near = numbers["settings"], numbers["overlap"]
    tables = []
    for part in ("all", "without overlap"):
        if part not in numbers:
            continue
        found = numbers[part]
        for name in next(iter(found["blur"]["one sample"].values())):
            title = f"{part} ({found['n']} captions): {name} by {settings['features']}, over"
            rows = [
                [who, *(f"{n[name]:.3g}" for n in row.values())]
                for who, row in found["blur"].items()
            ]
            tables.append((f"{title} blur radius", ["images", *found["blur"]["one sample"]], rows))
        if found["best_of"]:
            names = list(next(iter(found["best_of"].values())))
            columns = found["best_of"].values()
            rows = [[name, *(f"{column[name]:.3g}" for column in columns)] for name in names]
            tables.append((f"{title} candidates", ["one of", *found["best_of"]], rows))
    cosines = [[f"{v:.3f}" for v in near["cosine"].values()]]
    title = f"overlap: cosine to the nearest training image by {near['features']}; "
    title += f"{near['removed']} of {settings['captions']} reach {settings['overlap']}: taken out"
    tables.append((title, [f"quantile {q}" for q in near["cosine"]], cosines))
    if "cas" in numbers:
        rows = [
            [who, *(f"{100 * mark['share']:.1f}" for mark in marks.values())]
            for who, marks in numbers["cas"].items()
        ]
        title = "classification accuracy score, %: trained on these, tested on true images"
        tables.append((title, ["trained on", *numbers["cas"]["samples"]], rows))
    return tables


def write_protocol(folder: str | Path, kinds: Mapping[str, Mapping]) -> Path:
    """Write folder/protocol.html and folder/protocol.json from `paper_protocol` of each kind."""
    folder = Path(folder)
    parts = ["<h1>The paper's section 3, for this run</h1>"]
    for kind, numbers in kinds.items():
        parts.append(f"<h2>{kind.replace('_', '-')}</h2>")
        parts += [html_table(head, rows, title) for title, head, rows in protocol_tables(numbers)]
        curves = numbers["all"]["blur"]
        name = next(iter(next(iter(curves["one sample"].values()))))
        lines = {
            who: ([int(r) for r in row], [n[name] for n in row.values()])
            for who, row in curves.items()
        }
        figure = plot.show_curves(lines, "blur radius, pixels", name, kind)
        parts.append(image(figure, f"{name} over blur radii, {kind}", "520"))
    text = json.dumps(kinds, indent=1, allow_nan=False) + "\n"
    write_text(folder / "protocol.json", text)
    write_text(folder / "protocol.html", page("Protocol", parts))
    return folder / "protocol.html"


def protocol_text(kinds: Mapping[str, Mapping]) -> str:
    """Lay the tables of every kind of captions out as text."""
    lines = []
    for kind, numbers in kinds.items():
        for title, head, rows in protocol_tables(numbers):
            lines.append(f"{kind.replace('_', '-')}, {title}")
            for row in (head, *rows):
                lines.append(f"  {row[0]:<16}" + "".join(f"{cell:>16}" for cell in row[1:]))
    return "\n".join(lines)
