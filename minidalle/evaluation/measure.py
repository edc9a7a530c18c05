"""Measure a whole run: what the judge reads, what reranking gains, what an image costs in bits.

C captions, P candidates a caption, S side in pixels.
Source: Ramesh et al. 2021, arXiv:2102.12092, section 3.1 and figure 9.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from minidalle import data
from minidalle.config import Config, replace
from minidalle.data import scenes, shapes
from minidalle.dvae import codebook_use, map_pixels
from minidalle.evaluation import metrics
from minidalle.evaluation.candidates import Candidates, draw_candidates, reconstruct
from minidalle.evaluation.judge import Judge, as_float
from minidalle.generate import Pipeline

PAIR = ("colour", "shape", "digit", "item", "class")  # attributes that name what an image shows
CAPTIONS = {  # data sets whose captions can be read: how, and how an image is marked
    "shapes": (shapes.read_caption, metrics.right),
    "scenes": (scenes.read_caption, scenes.marks),
}


@dataclass(frozen=True)
class Cases:
    """True images with captions: images (C, 3, S, S) uint8, C captions.

    wanted: for each caption the attributes that it states; None where nobody knows them.
    attributes: those of the true image, stated or not; None likewise.
    mark: compares a judge's answers with `wanted`, as `metrics.right`.
    """

    images: Tensor
    captions: list[str]
    wanted: list[dict[str, str]] | None = None
    attributes: list[dict[str, str]] | None = None
    mark: Callable = metrics.right

    def take(self, rows: list[int]) -> "Cases":
        """The cases of some rows only."""
        lists = (
            [values[i] for i in rows] if values is not None else None
            for values in (self.captions, self.wanted, self.attributes)
        )
        return Cases(self.images[rows], *lists, self.mark)

    def pairs(self) -> list[str]:
        """Name what each image shows, such as 'red star': captions of one pair are alike."""
        return [" ".join(a[name] for name in PAIR if name in a) for a in self.attributes]


def load_cases(config: Config, n: int) -> dict[str, Cases]:
    """Load the first n test images of a configuration's data set, by kinds of captions.

    The kinds are 'seen' and 'held_out' where the data set keeps pairs out of training, else 'test';
    scenes of one digit and of two are kinds of their own, with n each, and so are the 'bindings'
    of two drawn objects that training never holds.
    """
    digits = config.data.name == "mnist"
    n_drawn = 3 * n if digits else n  # about half of them have one digit
    config = replace(config, data=replace(config.data, n_test=n_drawn))
    cases = {"test": cases_of(data.load(config, "test"), n_drawn)}
    with suppress(ValueError):  # most data sets keep nothing apart
        apart = cases_of(data.load(config, "held_out"), n_drawn)
        cases = {"seen": cases["test"], "held_out": apart}
    if digits:
        return {
            f"{kind} {count}": some.take(
                [i for i, a in enumerate(some.attributes) if a["count"] == count][:n]
            )
            for count in ("one", "two")
            for kind, some in cases.items()
        }
    if config.data.name == "scenes":
        cases["bindings"] = cases_of(data.load(config, "bindings"), n)
    if config.data.name not in CAPTIONS:
        return cases
    read, mark = CAPTIONS[config.data.name]
    for kind, some in cases.items():  # a caption of these may leave something open
        wanted = [read(caption) for caption in some.captions]
        cases[kind] = Cases(some.images, some.captions, wanted, some.attributes, mark)
    return cases


def cases_of(dataset, n: int) -> Cases:
    """Take the first n pairs of a data set; its attributes, where it has them, are all stated."""
    n = min(n, len(dataset))
    examples = [dataset[i] for i in range(n)]
    attributes = [dataset.attributes(i) for i in range(n)]
    known = None if any(a is None for a in attributes) else attributes
    return Cases(torch.stack([e[0] for e in examples]), [e[1] for e in examples], known, known)


def draw_all(
    pipeline: Pipeline, cases: Mapping[str, Cases], candidates: int, seeds: int = 1, seed: int = 0
) -> dict[str, Candidates]:
    """Draw candidates for every kind of captions.

    The captions are dealt out to `seeds` random generators, seed, seed + 1 and so on.
    """
    drawn = {}
    for kind, some in cases.items():
        parts = [
            draw_candidates(pipeline, captions, candidates, seed + i)
            for i, captions in enumerate(deal(some.captions, seeds))
        ]
        images, scores = torch.cat([p.images for p in parts]), torch.cat([p.scores for p in parts])
        drawn[kind] = Candidates(images, scores)
    return drawn


def deal(rows: Sequence, parts: int) -> list[Sequence]:
    """Cut rows into `parts` runs of nearly equal length; fewer where there are too few rows."""
    size = math.ceil(len(rows) / parts)
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def evaluate(
    pipeline: Pipeline,
    judge: Judge | None,
    cases: Mapping[str, Cases],
    drawn: Mapping[str, Candidates],
    seeds: int = 1,
    seed: int = 0,
    training: Tensor | None = None,
) -> dict:
    """Measure a run on kinds of captions, given what `draw_all` drew for them from these seeds.

    training: images (M, 3, S, S) uint8, to compare true images with others.
    Returns nested dicts of numbers, ready for JSON: under "kinds" what `measure` returns for each
    kind of `cases`, and under "settings" how it was done. Shares carry 95% intervals.
    """
    candidates = next(iter(drawn.values())).scores.shape[1]
    kinds = {
        kind: measure(pipeline, judge, some, drawn[kind], seeds, training)
        for kind, some in cases.items()
    }
    settings = {"candidates": candidates, "seed": seed, "seeds": seeds}
    return {"settings": settings, "kinds": kinds}


def measure(
    pipeline: Pipeline,
    judge: Judge | None,
    cases: Cases,
    drawn: Candidates,
    seeds: int = 1,
    training: Tensor | None = None,
) -> dict:
    """Return all numbers of one kind of captions, given the candidates drawn for them.

    "likelihood", "codebook" and "reconstruction" always; "clip_score" with a clip; with any judge
    "frechet" and "judge_score"; where it knows the attributes what `accuracies` returns.
    """
    rebuilt, tokens = reconstruct(pipeline, cases.images)
    true = cases.images / 255
    found = {
        "n": len(cases.captions),
        "likelihood": likelihood(pipeline, cases, tokens),
        "codebook": codebook_use(tokens, pipeline.codebook.config.vocab_size),
        "reconstruction": {
            "psnr": metrics.psnr(rebuilt, true),
            "ssim": metrics.ssim(rebuilt, true),
        },
    }
    images = {"rebuilt": rebuilt, "one": drawn.first()}
    if training is not None and len(training) >= len(true):
        images["training"] = training[: len(true)] / 255  # real against real, of other captions
    if pipeline.reranker is not None:
        images["best"] = drawn.best()
        found["clip_score"] = clip_scores(pipeline, cases, drawn)
    if judge is not None:
        found["frechet"] = {name: frechet(judge, true, some) for name, some in images.items()}
        found["judge_score"] = {name: judge_score(judge, some) for name, some in images.items()}
        if cases.wanted is not None:
            found |= accuracies(judge, cases, rebuilt, drawn, seeds)
    return found


def accuracies(
    judge: Judge, cases: Cases, rebuilt: Tensor, drawn: Candidates, seeds: int = 1
) -> dict:
    """Compare what the judge reads with what was asked for.

    True images and reconstructions must show all attributes of the true image, samples those that
    the caption states. "one" is the mean over all candidates, which has less noise than one draw.
    Intervals count pairs of shape and colour, not captions (`metrics.estimate`). With a clip,
    "best" is the best of all P candidates, and "best_of" that of fewer. "by_pair" and "by_seed"
    show how much the share of exact images depends on either.
    """
    C, P = drawn.scores.shape
    pairs = cases.pairs()
    read = judge.read(drawn.images.flatten(0, 1))  # may be many: not all as floats at once
    wanted = [w for w in cases.wanted for _ in range(P)]
    marks = {
        name: torch.tensor([math.nan if m is None else m for m in values]).view(C, P)
        for name, values in cases.mark(read, wanted).items()
    }
    marks = {name: values for name, values in marks.items() if not values.isnan().all()}

    def share(name: str, k: int) -> dict[str, float]:
        """How often is the best of k right, over the captions that ask for this attribute?"""
        rows = (~marks[name][:, 0].isnan()).nonzero()[:, 0]
        values = metrics.each_best_of(drawn.scores[rows], marks[name][rows], k)
        return metrics.estimate(values.tolist(), [pairs[i] for i in rows])

    known = cases.attributes if cases.mark is metrics.right else cases.wanted
    true, again = (
        metrics.accuracy(judge.read(x), known, pairs, cases.mark) for x in (cases.images, rebuilt)
    )
    found = {"true": true, "rebuilt": again, "one": {name: share(name, 1) for name in marks}}
    if cases.mark is metrics.right:
        found["confusion"] = {k: _confusion(k, read[k], wanted) for k in judge.values}
    ways = {"one": 1}
    if not drawn.scores.isnan().any():
        ways["best"] = P
        found["best"] = {name: share(name, P) for name in marks}
        found["best_of"] = {str(k): share("exact", k) for k in metrics.powers_of_two(P)}
    worth = {
        way: metrics.each_best_of(drawn.scores, marks["exact"], k).tolist()
        for way, k in ways.items()
    }
    found["by_pair"] = by_pair(worth, pairs)
    found["by_seed"] = {
        way: [math.fsum(part) / len(part) for part in deal(values, seeds)]
        for way, values in worth.items()
    }
    return found


def _confusion(name: str, read: Sequence[str], wanted: Sequence[Mapping[str, str]]) -> dict:
    asked = [(r, w[name]) for r, w in zip(read, wanted, strict=True) if name in w]
    return metrics.confusion([r for r, _ in asked], [w for _, w in asked])


def by_pair(worth: Mapping[str, Sequence[float]], pairs: Sequence[str]) -> dict[str, dict]:
    """Return for each pair its captions "n" and its mean of each list of worth, the worst first."""
    rows = defaultdict(list)
    for i, pair in enumerate(pairs):
        rows[pair].append(i)
    table = {
        pair: {"n": len(at), **{k: math.fsum(v[i] for i in at) / len(at) for k, v in worth.items()}}
        for pair, at in rows.items()
    }
    return dict(sorted(table.items(), key=lambda item: (item[1]["one"], item[0])))


@torch.inference_mode()
def clip_scores(pipeline: Pipeline, cases: Cases, drawn: Candidates) -> dict[str, float]:
    """Mean cosine of caption and image: of the true image, one sample, the best sample."""
    true = pipeline.score(list(cases.captions), as_float(cases.images))
    return {
        "true": true.mean().item(),
        "one": drawn.scores.mean().item(),
        "best": drawn.scores.max(1).values.mean().item(),
    }


def frechet(judge: Judge, true: Tensor, images: Tensor) -> dict[str, float]:
    """Fréchet distance of images to true ones by the judge's features, at each blur radius.

    It is not called FID, whose features are Inception's; numbers of the two cannot be compared.
    """
    distances = {}
    for radius in metrics.BLUR_RADII:
        ours, theirs = (
            metrics.moments(judge.all_features(metrics.gaussian_blur(x, radius)))
            for x in (true, images)
        )
        distances[str(radius)] = metrics.frechet_distance(ours, theirs)
    return distances


@torch.inference_mode()
def judge_score(judge: Judge, images: Tensor) -> dict[str, float]:
    """Return the inception score formula on the judge's answers, for each attribute."""
    parts = [judge(part) for part in images.split(256)]
    logits = {name: torch.cat([part[name] for part in parts]) for name in judge.values}
    return {name: metrics.inception_score(x.softmax(1)) for name, x in logits.items()}


@torch.inference_mode()
def likelihood(pipeline: Pipeline, cases: Cases, tokens: Tensor) -> dict[str, float]:
    """Bound what a caption and its image cost: -ln p(x, y) <= -ln p(y, z) - ln p(x | z).

    z = tokens (C, grid, grid), the likeliest ones, so the bound is Eq. 1 with a certain q. Pixels
    count as 8-bit values (`metrics.pixel_nats`). bits_per_dim is that of the image given its
    caption, per value (three a pixel): the sum of its two parts. Where a codebook has no law of
    pixels, or one whose scale has a floor, which training needs and bits do not, the law is the
    logit-Laplace around what it decodes, with the likeliest scale for every 64 images.
    """
    prior, codebook = pipeline.prior, pipeline.codebook
    device = next(prior.parameters()).device
    text = pipeline.tokenizer.encode_batch(cases.captions, prior.caption_len)
    sums = torch.zeros(3, dtype=torch.float64)  # nats of text, tokens, pixels
    for x, z, y in zip(*(t.split(64) for t in (cases.images, tokens, text)), strict=True):
        z = z.to(device)
        text_ln, image_ln = prior.log_likelihood(y.to(device), z.flatten(1))
        if hasattr(codebook, "decode_vectors") and codebook.config.min_log_b is None:
            mu, log_b = (v.float().cpu() for v in codebook.decode_vectors(codebook.code_vectors(z)))
        else:
            mu = map_pixels(codebook.decode(z).float().cpu()).logit()
            log_b = (map_pixels(x / 255).logit() - mu).abs().mean().log().expand_as(mu)
        for i, cost in enumerate((-text_ln, -image_ln, metrics.pixel_nats(x, mu, log_b))):
            sums[i] += cost.double().cpu().sum()
    bits = (sums / math.log(2) / cases.images.numel()).tolist()
    return {
        "text_nats_per_token": (sums[0] / (text >= 0).sum()).item(),
        "image_nats_per_token": (sums[1] / tokens.numel()).item(),
        "bits_per_dim_tokens": bits[1],
        "bits_per_dim_given_tokens": bits[2],
        "bits_per_dim": bits[1] + bits[2],
    }
