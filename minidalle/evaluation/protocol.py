"""Section 3 of the paper as a protocol, on any data set of images with captions.

Every caption is drawn once: Fréchet distance and inception score, with both sides blurred alike.
The same against the number of candidates that CLIP chose from. Test images that training images
resemble too much are taken out, and everything is measured again. Where images have classes, a
network learns them from samples only. C captions, P candidates a caption, S side in pixels.
Source: Ramesh et al. 2021, arXiv:2102.12092, section 3.1, figure 9, appendix F; Ravuri and Vinyals
2019, arXiv:1905.10887 (classification accuracy score).
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from minidalle.evaluation import metrics
from minidalle.evaluation.candidates import Candidates, clip_features
from minidalle.evaluation.judge import RECIPES, Judge, train_judge
from minidalle.evaluation.measure import PAIR, Cases, judge_score
from minidalle.evaluation.report import Table, curves, text_html, write_pages
from minidalle.generate import Pipeline

Measure = Callable[[Tensor, Tensor], dict[str, float]]  # true, samples -> numbers by name
OVERLAP = 0.95  # cosine from which a training image counts as the same image
CAS_STEPS = 600  # updates of the network that learns from samples, at most
# Ravuri and Vinyals 2019, table 3: CIFAR-10, 50,000 samples, a network of theirs.
PUBLISHED = {
    "PixelCNN, published": 64.0, "BigGAN, published": 71.9, "PixelIQN, published": 74.3,
    "real images, published": 92.6,
}  # fmt: skip
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
        widest = next((name for name in PAIR[1:] if name in judge.values), next(iter(judge.values)))

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
    device: str = "cpu",
    recipe: str = "mnist",
) -> dict:
    """Return the numbers of the paper's section 3 for one kind of captions, ready for JSON.

    drawn: candidates of every caption of `cases`; training: true images (M, 3, S, S) to compare
    with, a different set. overlap: the cosine from which a test image counts as known; the paper
    chose its threshold by looking, so the numbers hold quantiles to choose by. Where fewer than two
    test images are left, nothing is measured without overlap. recipe: whose judge's training the
    classification accuracy score takes.
    """
    whose, ruler = choose_measure(pipeline, judge, device)
    kin = alike(training, cases)
    found = {
        "settings": {"features": whose, "captions": len(cases.captions), "overlap": overlap},
        "all": _section(ruler, cases, drawn, kin),
    }
    # Take out the test images that the training set nearly holds, and measure again.
    who, cosine = nearest_training(pipeline, judge, cases.images, training.images)
    keep = (cosine < overlap).nonzero()[:, 0]
    found["overlap"] = {
        "features": who,
        "removed": len(cosine) - len(keep),
        "cosine": {f"{q:.0%}": torch.quantile(cosine, q).item() for q in QUANTILES},
    }
    if 2 <= len(keep) < len(cosine):
        rest = Candidates(drawn.images[keep], drawn.scores[keep])
        found["without overlap"] = _section(ruler, cases.take(keep.tolist()), rest, kin)
    if cases.wanted is not None and kin.attributes:
        found["cas"] = accuracy_score(cases, drawn, kin, RECIPES[recipe])
    return found


def alike(training: Cases, cases: Cases) -> Cases:
    """The training images whose every attribute some true image of `cases` has, if they are known.

    Such as the scenes of one digit, where the captions are about one.
    """
    if training.attributes is None or cases.attributes is None:
        return training
    values = {name: {a[name] for a in cases.attributes} for name in cases.attributes[0]}
    rows = enumerate(training.attributes)
    return training.take([i for i, a in rows if all(a[k] in values[k] for k in values)])


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
        sets["training images"] = others
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
    cases: Cases, drawn: Candidates, training: Cases, recipe: Mapping
) -> dict[str, dict]:
    """Train the judge's network on samples only, and on true images; test both on true images.

    A caption is its samples' label; where captions state several things, every second one teaches
    and the others' images test, or else which colour goes with which digit here would be learnt.
    Attributes that some caption leaves open are left out. training: images of the same kind.
    recipe: the judge's, but for roughened images, which would be judged too kindly, and CAS_STEPS
    at most. Returns how many images taught each, and for "samples" and "training images" the
    accuracy of each attribute.
    """
    names = set.intersection(*(set(w) for w in cases.wanted)) & set(training.attributes[0])

    def only(rows) -> list[dict[str, str]]:
        return [{name: row[name] for name in sorted(names)} for row in rows]

    step = 2 if len(names) > 1 else 1
    P, test = drawn.scores.shape[1], cases.take(list(range(step - 1, len(cases.wanted), step)))
    labels = [label for label in only(cases.wanted[::step]) for _ in range(P)]
    sets = {
        "samples": (drawn.images[::step].flatten(0, 1), labels),
        "training images": (training.images, only(training.attributes)),
    }
    options = recipe | {"steps": min(recipe["steps"], CAS_STEPS), "rough": 0.0}
    n = min(len(images) for images, _ in sets.values())  # as many of each
    found = {"images": n, "accuracy": {}}
    for name, (images, attributes) in sets.items():
        student = train_judge(images[:n], attributes[:n], **options)
        marks = metrics.accuracy(student.read(test.images), only(test.attributes), test.pairs())
        found["accuracy"][name] = marks
    return found


def protocol_tables(kinds: Mapping[str, Mapping]) -> list[Table]:
    """Lay the numbers of `paper_protocol` out, those of each kind of captions."""
    tables: list[Table] = []
    for kind, numbers in kinds.items():
        settings, near = numbers["settings"], numbers["overlap"]
        for part in ("all", "without overlap"):
            if part not in numbers:
                continue
            found, blur = numbers[part], numbers[part]["blur"]
            where = f"{kind}, {part} ({found['n']} captions)"
            for name in next(iter(blur["one sample"].values())):
                rows = [
                    [who, *(f"{n[name]:.4g}" for n in row.values())] for who, row in blur.items()
                ]
                title = f"{where}: {name} by {settings['features']}, over blur radius"
                tables.append((title, ["images", *blur["one sample"]], rows))
            best = found["best_of"]
            names = next(iter(best.values()), {})
            rows = [
                [name, *(f"{numbers[name]:.4g}" for numbers in best.values())] for name in names
            ]
            if rows:
                tables.append((f"{where}: over candidates", ["best of", *best], rows))
        title = f"{kind}: cosine to the nearest training image by {near['features']}; "
        title += (
            f"{near['removed']} of {settings['captions']} reach {settings['overlap']}: taken out"
        )
        rows = [["cosine", *(f"{v:.3f}" for v in near["cosine"].values())]]
        tables.append((title, ["quantile", *near["cosine"]], rows))
        if "cas" in numbers:
            score, n = numbers["cas"]["accuracy"], numbers["cas"]["images"]
            rows = [
                [who, *(f"{100 * mark['share']:.1f}" for mark in marks.values())]
                for who, marks in score.items()
            ]
            if "class" in score["samples"]:  # CIFAR-10
                rows += [[who, f"{share:.1f}", ""] for who, share in PUBLISHED.items()]
            title = f"{kind}: classification accuracy score, %, of networks taught by {n} images"
            tables.append((title, ["taught by", *score["samples"]], rows))
    return tables


def write_protocol(folder: str | Path, kinds: Mapping[str, Mapping]) -> Path:
    """Write folder/protocol.html and folder/protocol.json from `paper_protocol` of each kind."""
    parts = [text_html(protocol_tables(kinds))]
    for kind, numbers in kinds.items():
        blur = numbers["all"]["blur"]
        for name in next(iter(blur["one sample"].values())):
            lines = {who: {r: n[name] for r, n in row.items()} for who, row in blur.items()}
            parts.append(curves(lines, "blur radius, pixels", name, kind))
    return write_pages(folder, "protocol", "The paper's section 3, for this run", kinds, parts)
