"""Measure a whole run: what the judge reads, what reranking gains, what a picture costs in bits.

C captions, P candidates a caption, S side in pixels.
Source: Ramesh et al. 2021, arXiv:2102.12092, section 3.1 and figure 9.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from minidalle.data import shapes
from minidalle.dvae import codebook_use
from minidalle.evaluation import metrics
from minidalle.evaluation.candidates import (
    Pool,
    draw_pool,
    encode_captions,
    encode_pictures,
    rebuild,
)
from minidalle.evaluation.judge import Judge
from minidalle.generate import Pipeline


@dataclass(frozen=True)
class Cases:
    """True pictures with captions: images (C, 3, S, S) uint8, C captions.

    wanted: for each caption the attributes that it states; None where nobody knows them.
    attributes: those of the true picture, stated or not; None likewise.
    """

    images: Tensor
    captions: list[str]
    wanted: list[dict[str, str]] | None = None
    attributes: list[dict[str, str]] | None = None


def toy_cases(n: int, seed: int = 0) -> dict[str, Cases]:
    """Draw n unseen toy scenes of pairs seen in training, and n of held-out pairs."""
    cases = {}
    for name, split in (("seen", "test"), ("held_out", "held_out")):
        scenes = shapes.draw(n, seed, split)
        wanted = [shapes.read_caption(caption) for caption in scenes.captions]
        cases[name] = Cases(scenes.images, scenes.captions, wanted, scenes.attributes)
    return cases


def cases_of(dataset, n: int) -> Cases:
    """Take the first n pairs of a data set; its attributes, where it has them, are all stated."""
    n = min(n, len(dataset))
    pairs = [dataset[i] for i in range(n)]
    attributes = [dataset.attributes(i) for i in range(n)]
    known = None if any(a is None for a in attributes) else attributes
    return Cases(torch.stack([p[0] for p in pairs]), [p[1] for p in pairs], known, known)


def draw_pools(
    pipeline: Pipeline, cases: Mapping[str, Cases], candidates: int, seed: int = 0, **options
) -> dict[str, Pool]:
    """Draw the candidates of every kind of captions; options as `pool.draw_pool`."""
    return {
        kind: draw_pool(pipeline, some.captions, candidates, seed, **options)
        for kind, some in cases.items()
    }


def evaluate(
    pipeline: Pipeline,
    judge: Judge | None,
    cases: Mapping[str, Cases] | None = None,
    pools: Mapping[str, Pool] | None = None,
    n: int = 256,
    candidates: int = 16,
    seed: int = 0,
    progress: bool = True,
) -> dict:
    """Measure a run on kinds of captions: by default n toy scenes each of seen and held-out pairs.

    pools: candidates that were drawn already, by `draw_pools`; then `candidates` is theirs.
    Returns nested dicts of numbers, ready for JSON: under "kinds" what `measure` returns for each
    kind of `cases`, and under "settings" how it was done. Shares carry 95% intervals.
    Raises ValueError for fewer than two captions, or when candidates < 1.
    """
    if candidates < 1 or n < 2:
        raise ValueError(f"at least 1 candidate of 2 captions is needed, got {candidates=} {n=}")
    cases = toy_cases(n, seed) if cases is None else cases
    if pools is None:
        pools = draw_pools(pipeline, cases, candidates, seed, progress=progress)
    candidates = next(iter(pools.values())).scores.shape[1]
    kinds = {kind: measure(pipeline, judge, some, pools[kind]) for kind, some in cases.items()}
    return {"settings": {"candidates": candidates, "seed": seed}, "kinds": kinds}


def measure(pipeline: Pipeline, judge: Judge | None, cases: Cases, pool: Pool) -> dict:
    """Return all numbers of one kind of captions, given the candidates drawn for them.

    "likelihood" and "codebook" always; "clip_score" and "best_of" with a clip; with a judge that
    knows the attributes "true", "rebuilt", "one", "best" (accuracies), "confusion", and with any
    judge "frechet" and "judge_score".
    """
    rebuilt, tokens = rebuild(pipeline, cases.images)
    found = {
        "n": len(cases.captions),
        "likelihood": likelihood(pipeline, cases, tokens),
        "codebook": codebook_use(tokens, pipeline.codebook.config.vocab_size),
    }
    pictures = {"rebuilt": rebuilt, "one": pool.first()}
    if pipeline.reranker is not None:
        pictures["best"] = pool.best()
        found["clip_score"] = clip_scores(pipeline, cases, pool)
    if judge is not None:
        found["frechet"] = frechet(judge, cases.images / 255, pictures)
        found["judge_score"] = {k: judge_score(judge, x) for k, x in pictures.items()}
        if cases.wanted is not None:
            found |= accuracies(judge, cases, rebuilt, pool)
    return found


def accuracies(judge: Judge, cases: Cases, rebuilt: Tensor, pool: Pool) -> dict:
    """Compare what the judge reads with what was asked for.

    True pictures and reconstructions must show all attributes of the true picture, samples those
    that the caption states. "one" is the mean over all candidates, which has less noise than one
    draw; its interval counts captions, not candidates, and so is on the wide side.
    """
    C, P = pool.scores.shape
    read = judge.read(pool.images.flatten(0, 1))  # may be many: not all as floats at once
    wanted = [w for w in cases.wanted for _ in range(P)]
    marks = metrics.right(read, wanted)
    marks = {name: ms for name, ms in marks.items() if any(m is not None for m in ms)}
    true, again = judge.read(cases.images), judge.read(rebuilt)
    found = {
        "true": metrics.accuracy(true, cases.attributes),
        "rebuilt": metrics.accuracy(again, cases.attributes),
        "one": {name: _over_pool(ms, pool, 1) for name, ms in marks.items()},
        "confusion": {
            name: metrics.confusion(*_asked(name, read[name], wanted)) for name in judge.values
        },
    }
    if not pool.scores.isnan().any():
        found["best"] = {name: _over_pool(ms, pool, P) for name, ms in marks.items()}
        exact = torch.tensor(marks["exact"]).view(C, P)
        found["best_of"] = {
            str(k): _share_of_best(pool.scores, exact, k) for k in metrics.powers_of_two(P)
        }
    return found


def _asked(name: str, read: list[str], wanted: list[dict[str, str]]) -> tuple[list, list]:
    pairs = [(r, w[name]) for r, w in zip(read, wanted, strict=True) if name in w]
    return [r for r, _ in pairs], [w for _, w in pairs]


def _over_pool(marks: list[int | None], pool: Pool, k: int) -> dict[str, float]:
    """Share of right answers by the best of k, over the captions that ask for the attribute."""
    C, P = pool.scores.shape
    asks = torch.tensor([m is not None for m in marks]).view(C, P)[:, 0]
    values = torch.tensor([m or 0 for m in marks]).view(C, P)[asks]
    if k == 1:  # needs no ranking, so no clip either
        return metrics.estimate(values.double().mean().item(), len(values))
    return _share_of_best(pool.scores[asks], values, k)


def _share_of_best(scores: Tensor, marks: Tensor, k: int) -> dict[str, float]:
    share = metrics.best_of(scores, marks, k)
    return metrics.estimate(min(share, 1.0), len(marks))  # sums of weights round above 1


@torch.inference_mode()
def clip_scores(pipeline: Pipeline, cases: Cases, pool: Pool) -> dict[str, float]:
    """Mean cosine of caption and picture: of the true picture, one sample, the best sample."""
    text = encode_captions(pipeline, cases.captions).cpu()
    true = encode_pictures(pipeline, cases.images)
    return {
        "true": (true * text).sum(1).mean().item(),
        "one": pool.scores.mean().item(),
        "best": pool.scores.max(1).values.mean().item(),
    }


@torch.inference_mode()
def frechet(judge: Judge, true: Tensor, pictures: Mapping[str, Tensor]) -> dict[str, dict]:
    """Toy Fréchet distance to the true pictures, by the judge's features, at each blur radius.

    It is not called FID, whose features are Inception's; numbers of the two cannot be compared.
    """
    distances: dict[str, dict] = {name: {} for name in pictures}
    for radius in metrics.BLUR_RADII:
        ours = metrics.moments(judge.features(metrics.gaussian_blur(true, radius)))
        for name, images in pictures.items():
            theirs = metrics.moments(judge.features(metrics.gaussian_blur(images, radius)))
            distances[name][str(radius)] = metrics.frechet_distance(ours, theirs)
    return distances


@torch.inference_mode()
def judge_score(judge: Judge, images: Tensor) -> dict[str, float]:
    """Return the inception score formula on the judge's answers, for each attribute."""
    return {name: metrics.inception_score(x.softmax(1)) for name, x in judge(images).items()}


@torch.inference_mode()
def likelihood(pipeline: Pipeline, cases: Cases, tokens: Tensor) -> dict[str, float]:
    """Bound what a caption and its picture cost: -ln p(x, y) <= -ln p(y, z) - ln p(x | z).

    z = tokens (C, grid, grid), the likeliest ones, so the bound is Eq. 1 with a certain q. Pixels
    count as 8-bit values (`metrics.pixel_nats`). bits_per_pixel is that of the picture given its
    caption, per pixel of three values: the sum of its two parts.
    """
    pipe, device = pipeline, pipeline.prior.image_start.device
    text = pipe.tokenizer.encode_batch(cases.captions, pipe.prior.config.text_len - 1)
    sums = torch.zeros(3, dtype=torch.float64)  # nats of text, tokens, pixels
    for x, z, y in zip(*(t.split(64) for t in (cases.images, tokens, text)), strict=True):
        z = z.to(device)
        text_ln, image_ln = pipe.prior.log_likelihood(y.to(device), z.flatten(1))
        mu, log_b = pipe.codebook.decode_vectors(pipe.codebook.code_vectors(z))
        pixels = metrics.pixel_nats(x, mu.float().cpu(), log_b.float().cpu())
        costs = (-text_ln.double().cpu(), -image_ln.double().cpu(), pixels)
        sums += torch.stack([cost.sum() for cost in costs])
    n_pixels = cases.images.numel() / 3
    bits = (sums / torch.tensor(2.0).log() / n_pixels).tolist()
    return {
        "text_nats_per_token": (sums[0] / (text >= 0).sum()).item(),
        "image_nats_per_token": (sums[1] / tokens.numel()).item(),
        "bits_per_pixel_tokens": bits[1],
        "bits_per_pixel_given_tokens": bits[2],
        "bits_per_pixel": bits[1] + bits[2],
    }


ROWS = {
    "true": "true pictures",
    "rebuilt": "reconstructions",
    "one": "one sample",
    "best": "best of {}",
}


def table(numbers: dict) -> str:
    """Lay the accuracies of `evaluate` out as text: percent, and the interval of "exact"."""
    lines = []
    for kind, found in numbers["kinds"].items():
        if "one" not in found:
            continue
        names = list(found["one"])
        lines.append(f"{kind.replace('_', '-'):<18}" + "".join(f"{n:>11}" for n in names))
        for key, title in ROWS.items():
            if key not in found:
                continue
            cells = "".join(f"{100 * found[key][n]['share']:11.1f}" for n in names)
            last = found[key]["exact"]
            title = title.format(numbers["settings"]["candidates"])
            lines.append(
                f"  {title:<16}{cells}  [{100 * last['low']:.1f}, {100 * last['high']:.1f}]"
            )
        lines.append(_summary(found))
    return "\n".join(lines)


def _summary(found: dict) -> str:
    cost, use = found["likelihood"], found["codebook"]
    return (
        f"  {cost['bits_per_pixel']:.2f} bits per pixel; {cost['text_nats_per_token']:.2f} nats "
        f"per text token, {cost['image_nats_per_token']:.2f} per image token; "
        f"{use['codes_used']:.0f} codes in use, perplexity {use['perplexity']:.0f}"
    )
