"""dVAE, VQ-VAE, VQGAN or palette? The same images through every codebook, and what comes back.

Run: python benchmarks/codebooks.py [--steps 1000] [--seeds 1] [--only NAME] [section.field=…]
     python benchmarks/codebooks.py --search [--steps 200]   search under CLIP, step by step
     python benchmarks/codebooks.py --masks                  a token a pixel: dense against gathered
Every kind has the toy preset's sizes and data and the same number of updates of the same batches,
which are fewer than the preset's, so that a run takes a minute or two: the order of the kinds is
of short runs. bits: of an image's tokens, before a prior packs them. frechet: in the judge's
features, against the true test images. read right: share of reconstructions of which the judge
reads every attribute as it was drawn.
Source: the papers that minidalle/codebooks names; Ramesh et al. 2021 for the dVAE.
"""

import argparse
import math
import tempfile
import time

import torch
import torch.nn.functional as F
from torch import Tensor

from minidalle import data
from minidalle.config import Config, get_config
from minidalle.dvae import codebook_use
from minidalle.evaluation import metrics
from minidalle.evaluation.judge import Judge
from minidalle.generate import Pipeline
from minidalle.models import build, load
from minidalle.priors.guided import search
from minidalle.stages import SHIPPED, train_stage

N_TEST = 512
PALETTE16 = [
    "codebook=palette", "dvae.n_pools=1", "dvae.vocab_size=512", "dalle.grid=16",
    "dalle.image_vocab=512",
]  # fmt: skip
VQGAN = ["codebook=vqgan", "dvae.spread_codes=true", "dvae.averages=true", "dvae.revive=0.05"]
GAME = ["dvae.disc_weight=0.8", "dvae.disc_layers=2", "dvae.disc_width=32"]
KINDS = {  # name: what it changes of the toy preset
    "dVAE": [],
    "dVAE, hard codes": ["dvae.hard=true"],
    "VQ-VAE, averages": ["codebook=vqvae"],
    "VQ-VAE, gradient": ["codebook=vqvae", "dvae.averages=false", "train_dvae.lr=5e-4"],
    "VQ-VAE, no revival": ["codebook=vqvae", "dvae.revive=0", "dvae.spread_codes=false"],
    "VQGAN, no game": [*VQGAN, "train_dvae.lr=1e-3"],
    "VQGAN": [*VQGAN, *GAME, "train_dvae.lr=1e-3"],
    "palette 16 x 16": PALETTE16,
    "palette 8 x 8": ["codebook=palette"],
    "down-sampled": ["codebook=palette"],
}
COLUMNS = {
    "psnr": "{:.2f}", "ssim": "{:.3f}", "frechet": "{:.2f}", "codes_used": "{:.0f}",
    "perplexity": "{:.0f}", "bits": "{:.0f}", "read right": "{:.1%}", "seconds": "{:.0f}",
}  # fmt: skip


def shortened(name: str, steps: int, seed: int, overrides: list[str]) -> Config:
    """The toy preset with a kind's changes, its schedules squeezed into `steps` updates."""
    changes = [
        *KINDS[name], f"seed={seed}", f"train_dvae.steps={steps}", f"train_dvae.eval_every={steps}",
        f"train_dvae.save_every={steps}", f"data.n_train={min(20_000, 8 * steps)}",
    ]  # fmt: skip
    if not any(word.startswith("codebook=") for word in KINDS[name]):  # the dVAE's own schedules
        changes += [f"dvae.tau_steps={steps}", f"dvae.beta_steps={steps * 2000 // 4800}"]
    if name == "VQGAN":  # the game begins in the middle
        changes.append(f"dvae.disc_start={steps // 2}")
    return get_config("toy", [*changes, *overrides])


@torch.no_grad()
def measure(name: str, model, images: Tensor, wanted: list[dict], judge: Judge) -> dict:
    """What the columns show of a trained codebook, but for the seconds."""
    tokens = model.tokens(images)
    again = model.decode(tokens)
    if name == "down-sampled":  # the same colours of 4 x 4 pixels, drawn smoothly
        small = F.avg_pool2d(again, model.side)
        again = F.interpolate(small, images.shape[-2:], mode="bicubic").clamp(0, 1)
    features = (metrics.moments(judge.all_features(x)) for x in (images, again))
    k = model.config.vocab_size
    found = {"psnr": metrics.psnr(again, images), "ssim": metrics.ssim(again, images)}
    found["frechet"] = metrics.frechet_distance(*features)
    found |= codebook_use(tokens, k)
    found["bits"] = tokens[0].numel() * math.log2(k)
    found["read right"] = metrics.accuracy(judge.read(again), wanted)["exact"]["share"]
    return found


def compare(names: list[str], steps: int, seeds: int, overrides: list[str]) -> None:
    """Train and measure each kind; print a row each: the mean over seeds, ± half the range."""
    judge = Judge.load(SHIPPED / "toy" / "judge")
    test = data.load(get_config("toy"), "test")
    images = torch.stack([test[i][0] for i in range(N_TEST)]).float() / 255
    wanted = [test.attributes(i) for i in range(N_TEST)]
    print(f"{steps} updates of 8 images, {seeds} seed(s), {N_TEST} test images, one thread")
    print(" " * 20 + "".join(f"{column:>15}" for column in COLUMNS), flush=True)
    for name in names:
        results = []
        for seed in range(seeds):
            config = shortened(name, steps, seed, overrides)
            with tempfile.TemporaryDirectory() as folder:
                began = time.process_time()
                train_stage(config, "dvae", folder)
                seconds = time.process_time() - began
                model = load(folder, "dvae")
            results.append(measure(name, model, images, wanted, judge) | {"seconds": seconds})
        print(f"{name:<20}" + "".join(cell(column, results) for column in COLUMNS), flush=True)


def cell(column: str, results: list[dict[str, float]]) -> str:
    """The mean over seeds, and behind it half the range."""
    values = [found[column] for found in results]
    text = COLUMNS[column].format(sum(values) / len(values))
    if len(values) > 1:
        text += " ± " + COLUMNS[column].format((max(values) - min(values)) / 2)
    return f"{text:>15}"


def under_clip(steps: int) -> None:
    """CLIP's score and the judge's verdict while the shipped toy is searched; then best of 16."""
    pipeline, judge = Pipeline.load(SHIPPED / "toy"), Judge.load(SHIPPED / "toy" / "judge")
    test = data.load(get_config("toy"), "test")
    captions, wanted = ([f(i) for i in range(16)] for f in (test.caption, test.attributes))
    found: dict[int, list] = {}
    marks = sorted({1, steps // 8, steps // 4, steps // 2, steps})

    def verdict(images: Tensor, i: int) -> tuple[float, float]:
        right = metrics.accuracy(judge.read(images), [wanted[i]] * len(images))
        score = pipeline.score([captions[i]], images).mean().item()
        return score, sum(part["share"] for part in right.values()) / len(right)

    began = time.process_time()
    for i, caption in enumerate(captions):

        def watch(step: int, tokens: Tensor, i: int = i) -> None:
            if step in marks:
                found.setdefault(step, []).append(verdict(pipeline.decode(tokens), i))

        generator = torch.Generator().manual_seed(i)
        search(pipeline.codebook, pipeline.reranker, caption, 1, steps, generator=generator,
               watch=watch)  # fmt: skip
    searched = time.process_time() - began
    print(
        "16 captions of the test set, one image each; right: mean share of attributes and 'exact'"
    )
    for step in marks:
        score, right = (sum(x) / len(x) for x in zip(*found[step], strict=True))
        print(f"search, {step:4} steps   CLIP {score:.3f}   right {right:.1%}", flush=True)
    began, best = time.process_time(), []
    for i, caption in enumerate(captions):
        generator = torch.Generator().manual_seed(i)
        best.append(verdict(pipeline.generate(caption, 1, 16, generator=generator)[0], i))
    score, right = (sum(x) / len(x) for x in zip(*best, strict=True))
    print(f"best of 16 samples   CLIP {score:.3f}   right {right:.1%}")
    print(f"seconds an image: search {searched / 16:.1f}", end=", ")
    print(f"best of 16 {(time.process_time() - began) / 16:.1f}")


def masks() -> None:
    """One update's loss and gradient of the toy's prior on a token a pixel, masks both ways."""
    sizes = ["codebook=palette", "dvae.n_pools=0", "dvae.vocab_size=512", "dalle.image_vocab=512"]
    for method in ("dense", "gathered"):
        config = get_config("toy", [*sizes, "dalle.grid=32", f"dalle.attention={method}"])
        prior, palette = build(config, "dalle"), build(config, "dvae")
        tokens = palette.tokens(torch.rand(2, 3, 32, 32)).flatten(1)  # (2, 1024)
        batch = {"tokens": tokens, "text": torch.ones(2, config.dalle.caption_len).long()}
        seconds = []
        for _ in range(4):
            began = time.process_time()
            prior.loss(batch, 0, torch.Generator().manual_seed(0))[0].backward()
            seconds.append(time.process_time() - began)
        states = config.dalle.text_len + config.dalle.grid**2
        print(f"{states} states, {method:<9} {min(seconds):.2f} s a batch of 2 (best of 4)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, help="updates a run (1000), or of a search (200)")
    parser.add_argument("--seeds", type=int, default=1, help="runs a kind (default 1)")
    parser.add_argument("--only", action="append", choices=KINDS, metavar="NAME", help="this kind")
    parser.add_argument("--search", action="store_true", help="search under CLIP instead")
    parser.add_argument("--masks", action="store_true", help="time a token a pixel instead")
    parser.add_argument("overrides", nargs="*", help="of the toy preset, like dvae.n_hid=16")
    a = parser.parse_args()
    torch.set_num_threads(1)
    if a.search:
        under_clip(a.steps or 200)
    elif a.masks:
        masks()
    else:
        compare(a.only or list(KINDS), a.steps or 1000, a.seeds, a.overrides)


if __name__ == "__main__":
    main()
