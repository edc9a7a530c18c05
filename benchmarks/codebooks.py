"""dVAE, VQ-VAE, VQGAN or palette? The same images through every codebook, and what comes back.

Run: OMP_NUM_THREADS=1 python benchmarks/codebooks.py --data toy [--seed 1] [--minutes 9]
     trains and measures the kinds that results/codebooks.json lacks; every row is kept at once,
     so that a run that was stopped goes on where it was. Without --data only the table is printed.
For each data set every kind has the preset's sizes, the same batches and the same number of updates
(STEPS, far fewer than the preset's: the order is one of short runs), and then a prior of its own
tokens. All priors of a data set are trained with as many operations: where an image has more
tokens, with fewer updates. CIFAR-10 gets no prior, and no reader where its judge is not shipped.
frechet: in the judge's features, against the true test images. edges: mean difference between
neighbouring pixels, of that in the true images. bits: of an image's tokens as they are, and as the
prior packs them, given the caption. read right: the judge reads every attribute as it was asked.
Source: the papers that minidalle/codebooks names; Ramesh et al. 2021 for the dVAE.
"""

import argparse
import json
import math
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from minidalle import data
from minidalle.config import Config, get_config
from minidalle.dvae import codebook_use
from minidalle.evaluation import metrics
from minidalle.evaluation.judge import Judge
from minidalle.evaluation.measure import Cases, load_cases
from minidalle.files import load_tensors, save_tensors, write_text
from minidalle.generate import sample
from minidalle.models import load
from minidalle.scale import arithmetic
from minidalle.stages import SHIPPED, train_stage, train_tokenizer

RESULTS = Path(__file__).resolve().parent / "results" / "codebooks.json"
STRIPS = RESULTS.with_suffix(".safetensors")  # of the toy: the first images of each kind
STEPS = {"toy": (2000, 400), "mnist": (1500, 300), "cifar": (1000, 0)}  # of codebook and prior
N_CASES = {"toy": 256, "mnist": 128, "cifar": 512}  # test images of each kind of captions
N_STRIP = 6
BATCH = 128
PALETTE16 = [
    "codebook=palette", "dvae.n_pools=1", "dvae.vocab_size=512", "dalle.grid=16",
    "dalle.image_vocab=512", "dalle.kernel=5",
]  # fmt: skip
VQGAN = [  # half the width, so that it has about the others' number of weights
    "codebook=vqgan", "dvae.spread_codes=true", "dvae.averages=true", "dvae.revive=0.05",
    "train_dvae.lr=1e-3",
]  # fmt: skip
GAME = ["dvae.disc_weight=0.8", "dvae.disc_layers=2", "dvae.disc_width=32"]
KINDS = {  # name: what it changes of the preset
    "dVAE": [],
    "dVAE, hard codes": ["dvae.hard=true"],
    "VQ-VAE, gradient": ["codebook=vqvae", "dvae.averages=false", "train_dvae.lr=5e-4"],
    "VQ-VAE, averages": ["codebook=vqvae"],
    "VQGAN, no game": VQGAN,
    "VQGAN": [*VQGAN, *GAME],
    "palette 16 x 16": PALETTE16,
    "down-sampled": ["codebook=palette"],
}
CIFAR = [  # the dVAE on photographs: the preset cifar has a VQ-VAE in its place
    "data.name=cifar", "data.n_train=50000", "dvae.n_hid=48", "dvae.vocab_size=512",
    "dalle.image_vocab=512", "train_dvae.steps=7000",
]  # fmt: skip
COLUMNS = {
    "psnr": "{:.2f}", "ssim": "{:.3f}", "edges": "{:.0%}", "frechet": "{:.0f}",
    "codes_used": "{:.0f}", "perplexity": "{:.0f}", "bits": "{:.0f}", "prior_bits": "{:.0f}",
    "rebuilt": "{:.1%}", "samples": "{:.1%}", "seconds": "{:.0f}", "prior_seconds": "{:.0f}",
}  # fmt: skip


def preset_of(name: str, words: list[str] = ()) -> Config:
    """A preset with changes; of photographs, what mnist's recipe is for them."""
    if name != "cifar":
        return get_config(name, words)
    networks = "codebook=palette" not in words  # a palette has none
    own = [word for word in CIFAR if networks or not word.startswith("dvae.n_hid")]
    return get_config("mnist", [*own, *words])


def setting(name: str, kind: str, seed: int, overrides: tuple[str, ...] = ()) -> Config:
    """A preset with a kind's changes, its schedules squeezed into the updates of STEPS."""
    preset, (steps, prior_steps) = preset_of(name), STEPS[name]
    words = list(KINDS[kind])
    if "codebook=vqgan" in words:
        words.append(f"dvae.n_hid={preset.dvae.n_hid // 2}")
    if not any(word.startswith("codebook=") for word in words):  # the dVAE's own schedules
        beta = max(1, preset.dvae.beta_steps * steps // preset.train_dvae.steps)
        words += [f"dvae.tau_steps={steps}", f"dvae.beta_steps={beta}"]
    if kind == "VQGAN":  # the game begins in the middle
        words.append(f"dvae.disc_start={steps // 2}")
    grid, batch = preset_of(name, words).dalle, preset.train_dalle.batch_size
    operations = (arithmetic.training_flops(c) for c in (preset.dalle, grid))
    prior_steps = round(prior_steps * next(operations) / next(operations))
    words += [
        f"seed={seed}", f"data.n_train={max(steps * preset.train_dvae.batch_size, 2 * batch)}",
        *(f"train_dvae.{field}={steps}" for field in ("steps", "eval_every", "save_every")),
    ]  # fmt: skip
    if prior_steps:
        fields = ("steps", "eval_every", "save_every")
        words += [f"train_dalle.{field}={prior_steps}" for field in fields]
    return preset_of(name, [*words, *overrides])


def cases_of(name: str) -> tuple[Cases, list[str]]:
    """Test images of every kind of captions as one, and the pair that each shows."""
    kinds = list(load_cases(get_config(name), N_CASES[name]).values())
    lists = ([row for c in kinds for row in getattr(c, x)] for x in ("captions", "attributes"))
    captions, attributes = lists
    wanted = [row for c in kinds for row in c.wanted]
    cases = Cases(torch.cat([c.images for c in kinds]), captions, wanted, attributes, kinds[0].mark)
    return cases, cases.pairs()


def find_judge(name: str) -> Judge | None:
    """The shipped judge of a data set, if there is one."""
    folder = SHIPPED / name / "judge"
    return Judge.load(folder) if folder.is_dir() else None


def decode(kind: str, model, tokens: Tensor) -> Tensor:
    """Images of tokens; those of 'down-sampled' are the same colours, drawn smoothly."""
    images = torch.cat([model.decode(part) for part in tokens.split(BATCH)])
    if kind == "down-sampled":
        small = F.avg_pool2d(images, model.side)
        images = F.interpolate(small, images.shape[-2:], mode="bicubic").clamp(0, 1)
    return images


def edges(images: Tensor) -> float:
    """Mean absolute difference between neighbouring pixels, across and down."""
    across, down = images.diff(dim=3).abs().mean(), images.diff(dim=2).abs().mean()
    return ((across + down) / 2).item()


def shares(judge: Judge, images: Tensor, cases: Cases, asked: list, pairs: list[str]) -> list:
    """How many images of each pair are read right: [right, all] for each, sorted by pair."""
    marks = cases.mark(judge.read(images), asked)["exact"]
    found = {pair: [0, 0] for pair in sorted(set(pairs))}
    for pair, mark in zip(pairs, marks, strict=True):
        found[pair][0] += mark
        found[pair][1] += 1
    return list(found.values())


@torch.no_grad()
def measure_codebook(name: str, kind: str, model, cases: Cases, pairs: list[str]) -> dict:
    """What the table shows of a trained codebook, but for the seconds; "strip" are images."""
    judge, true = find_judge(name), cases.images / 255
    tokens = torch.cat([model.tokens(part) for part in true.split(BATCH)])
    again = decode(kind, model, tokens)
    found = {
        "psnr": metrics.psnr(again, true), "ssim": metrics.ssim(again, true),
        "edges": edges(again) / edges(true), **codebook_use(tokens, model.config.vocab_size),
        "bits": tokens[0].numel() * math.log2(model.config.vocab_size), "strip": again[:N_STRIP],
    }  # fmt: skip
    if judge:
        moments = (metrics.moments(judge.all_features(x)) for x in (true, again))
        found["frechet"] = metrics.frechet_distance(*moments)
        known = cases.attributes if cases.mark is metrics.right else cases.wanted
        found["rebuilt"] = shares(judge, again, cases, known, pairs)
    return found


@torch.no_grad()
def measure_prior(name: str, kind: str, model, prior, tokenizer, cases: Cases, pairs) -> dict:
    """Bits of a test image's tokens, and how many samples are read right; "drawn" are images."""
    text = tokenizer.encode_batch(cases.captions, prior.caption_len)
    generator, nats, drawn = torch.Generator().manual_seed(0), [], []
    for images, some in zip(cases.images.split(BATCH), text.split(BATCH), strict=True):
        nats.append(-prior.log_likelihood(some, model.tokens(images / 255).flatten(1))[1])
        drawn.append(sample(prior, some, len(some), generator=generator))
    images = decode(kind, model, torch.cat(drawn))
    found = {"prior_bits": torch.cat(nats).mean().item() / math.log(2), "drawn": images[:N_STRIP]}
    if judge := find_judge(name):
        found["samples"] = shares(judge, images, cases, cases.wanted, pairs)
    return found


def run_row(name: str, kind: str, seed: int, overrides: tuple[str, ...] = ()) -> dict:
    """Train one kind with one seed, measure it, and return its row."""
    config, (cases, pairs) = setting(name, kind, seed, overrides), cases_of(name)
    row = {"data": name, "kind": kind, "seed": seed, "steps": config.train_dvae.steps}
    with tempfile.TemporaryDirectory() as folder:
        data.load(config, "train"), data.load(config, "test")  # drawn once, kept in memory
        began = time.process_time()
        train_stage(config, "dvae", folder)
        row["seconds"] = time.process_time() - began
        model = load(folder, "dvae")
        row["weights"] = sum(p.numel() for n, p in model.named_parameters() if "advers" not in n)
        row |= measure_codebook(name, kind, model, cases, pairs)
        if STEPS[name][1]:
            train_tokenizer(config, folder)  # the same for every kind
            began = time.process_time()
            train_stage(config, "dalle", folder)
            row["prior_seconds"] = time.process_time() - began
            row["prior_steps"] = config.train_dalle.steps
            prior, tokenizer = load(folder, "dalle"), load(folder, "tokenizer")
            row |= measure_prior(name, kind, model, prior, tokenizer, cases, pairs)
    return row


def keep(row: dict) -> None:
    """Put a row into RESULTS in place of an older one, and the toy's first images into STRIPS."""
    strips = {part: row.pop(part) for part in ("strip", "drawn") if part in row}
    key = ("data", "kind", "seed")
    rows = [r for r in read_rows() if any(r[k] != row[k] for k in key)]
    rows.append({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()})
    rows.sort(key=lambda r: (list(STEPS).index(r["data"]), list(KINDS).index(r["kind"]), r["seed"]))
    write_text(RESULTS, "[\n" + ",\n".join(json.dumps(r) for r in rows) + "\n]\n")
    if row["data"] == "toy" and row["seed"] == 0:
        kept = load_tensors(STRIPS)[0] if STRIPS.exists() else {}
        kept["true/strip"] = cases_of("toy")[0].images[:N_STRIP]
        kept |= {f"{row['kind']}/{k}": (255 * x).round().byte() for k, x in strips.items()}
        save_tensors(STRIPS, dict(sorted(kept.items())), {})


def read_rows() -> list[dict]:
    """The rows that were measured."""
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else []


def cell(column: str, rows: list[dict]) -> str:
    """A number of one kind: its mean over seeds, and how sure it is.

    Shares have the 95 % interval over the pairs of all seeds, other numbers half their range.
    """
    values = [row[column] for row in rows if column in row]
    if not values:
        return "–"
    if isinstance(values[0], list):
        parts = [(pair, part) for value in values for pair, part in enumerate(value)]
        marks = [x for _, (right, n) in parts for x in [1] * right + [0] * (n - right)]
        clusters = [pair for pair, (_, n) in parts for _ in range(n)]
        found = metrics.estimate(marks, clusters)
        return "{share:.1%} [{low:.0%}, {high:.0%}]".format(**found)
    text = COLUMNS[column].format(sum(values) / len(values))
    if len(values) > 1:
        text += " ± " + COLUMNS[column].format((max(values) - min(values)) / 2)
    return text


def table(name: str, rows: list[dict]) -> list[list[str]]:
    """Cells of the table of one data set: a header, then a line for each kind that was run."""
    lines = [["kind", *(c for c in COLUMNS if any(c in r for r in rows if r["data"] == name))]]
    for kind in KINDS:
        own = [r for r in rows if (r["data"], r["kind"]) == (name, kind)]
        if own:
            lines.append([f"{kind} ({len(own)})", *(cell(c, own) for c in lines[0][1:])])
    return lines


def print_tables() -> None:
    """Print every table; behind each kind stands its number of seeds."""
    rows = read_rows()
    for name in dict.fromkeys(r["data"] for r in rows):
        lines, (steps, prior) = table(name, rows), STEPS[name]
        print(f"\n{name}: {steps} updates of a codebook, {prior} of a prior with 64 tokens")
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        for line in lines:
            print("  ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=STEPS, help="measure on these images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", choices=KINDS, metavar="NAME", help="this kind")
    parser.add_argument("--minutes", type=float, default=math.inf, help="then begin no more rows")
    parser.add_argument("overrides", nargs="*", help="of the preset, like dvae.n_hid=16")
    a = parser.parse_args()
    torch.set_num_threads(1)
    began, longest = time.monotonic(), 0.0
    done = {(r["data"], r["kind"], r["seed"]) for r in read_rows()}
    for kind in a.only or KINDS if a.data else ():
        start = time.monotonic()
        if (a.data, kind, a.seed) in done or start - began + longest > 60 * a.minutes:
            continue
        keep(run_row(a.data, kind, a.seed, tuple(a.overrides)))
        longest = max(longest, time.monotonic() - start)
    print_tables()


if __name__ == "__main__":
    main()
