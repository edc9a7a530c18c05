"""Time to quality on the toy world: one row for each improvement, as speed-runs keep it.

Target: at least 90 % exact, one sample at temperature 1, held-out pairs, 256 captions, 3 seeds.
Counted: processor seconds of one thread for tokenizer, dVAE and prior, evaluations and saving
included; drawing the world (8 s) and CLIP stand apart. "exact" means that the judge reads every
attribute that the caption states. Rows called "laboratory" were measured by a loop of their own:
one seed, 512 captions (best of 16: 192), neither evaluations nor saving counted.
Run: OMP_NUM_THREADS=1 python benchmarks/records.py --change "what is new" --seeds 0 1 2
     [--candidates 64] [dvae.vocab_size=192 …]  adds a row to records.json, writes records.md
     … --peer             a row of dalle-pytorch (peers.py says how to install it) instead: the
                          same scenes and tokens of text, the seconds of the last row of ours
     … --table            only writes records.md again
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from peers import DALLE_PYTORCH, dalle_pytorch_package
from torch import Tensor

from minidalle import data, stages
from minidalle.config import Config, get_config
from minidalle.evaluation.candidates import draw_candidates, reconstruct
from minidalle.evaluation.judge import Judge
from minidalle.evaluation.measure import load_cases
from minidalle.evaluation.metrics import accuracy
from minidalle.generate import Pipeline, sample

HERE = Path(__file__).resolve().parent
JUDGE = HERE.parent / "data" / "checkpoints" / "toy" / "judge"
STAGES = ("tokenizer", "dvae", "dalle")
KINDS = ("seen", "held_out")
N = 256  # captions of each kind


def train(config: Config, run: Path, clip: bool) -> dict[str, float]:
    """Train a run from nothing. Returns the processor seconds of each stage."""
    began = time.process_time()
    data.load(config, "train"), data.load(config, "test")  # drawn once, kept in memory
    seconds = {"world": time.process_time() - began}
    for stage in (*STAGES, "clip") if clip else STAGES:
        began = time.process_time()
        if stage == "tokenizer":
            stages.train_tokenizer(config, run)
        else:
            stages.train_stage(config, stage, run, fresh=True)
        seconds[stage] = time.process_time() - began
    return {stage: round(value, 1) for stage, value in seconds.items()}


def mark(seed: int, draw: Callable) -> dict[str, dict[str, float]]:
    """Return the shares in percent of each kind. draw(cases) -> name: (images, attributes)."""
    judge, found = Judge.load(JUDGE), {}
    for kind, cases in load_cases(get_config("toy", [f"seed={seed}"]), N).items():
        found[kind] = {
            name: round(100 * accuracy(judge.read(images), wanted)["exact"]["share"], 1)
            for name, (images, wanted) in draw(cases).items()
        }
    return found


@torch.inference_mode()
def measure(run: Path, seed: int, candidates: int) -> dict[str, dict[str, float]]:
    """Return the shares in percent of each kind: 'rebuilt', 'one', with candidates 'best of …'."""
    pipeline = Pipeline.load(run)

    def draw(cases):
        rebuilt, _ = reconstruct(pipeline, cases.images)
        text = pipeline.tokenizer.encode_batch(cases.captions, pipeline.prior.caption_len)
        generator = torch.Generator().manual_seed(seed)
        drawn = pipeline.decode(sample(pipeline.prior, text, N, generator=generator))
        images = {"rebuilt": (rebuilt, cases.attributes), "one": (drawn, cases.wanted)}
        if candidates:
            drawn = draw_candidates(pipeline, cases.captions, candidates, seed)
            for n in (n for n in (4, 16, 64) if n <= candidates):
                images[f"best of {n}"] = drawn.best(n), cases.wanted
        return images

    return mark(seed, draw)


def train_peer(config: Config, tokenizer, seconds: dict[str, float], lr: float):
    """Train dalle-pytorch's dVAE and DALLE for the processor seconds of ours.

    Sizes are those of the preset; batches, Adam, clipping and the falling temperature those of its
    own training scripts (train_vae.py, train_dalle.py), lr the rate of its DALLE.
    Returns (dVAE, DALLE, the tokens of captions as it wants them).
    """
    peer, d, known = dalle_pytorch_package(), config.dalle, data.load(config, "train")
    generator = torch.Generator().manual_seed(config.seed)
    torch.manual_seed(config.seed)

    def encode(captions: list[str]) -> Tensor:  # 0 is its pad, -1 is ours
        return tokenizer.encode_batch(captions, d.text_len) + 1

    def fit(model, loss: Callable, budget: float, batch_size: int, lr: float, clip: float) -> int:
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimiser, step, began = torch.optim.Adam(parameters, lr), 0, time.process_time()
        while time.process_time() - began < budget:
            chosen = torch.randint(len(known.images), (batch_size,), generator=generator)
            optimiser.zero_grad()
            loss(chosen, step).backward()
            torch.nn.utils.clip_grad_norm_(parameters, clip)
            optimiser.step()
            if model is dvae and step % 100 == 99:  # as train_vae.py
                optimiser.param_groups[0]["lr"] *= 0.98
            step += 1
        return step

    dvae = peer.DiscreteVAE(
        image_size=config.dvae.image_size, num_layers=2, num_tokens=config.dvae.vocab_size,
        codebook_dim=64, hidden_dim=64, num_resnet_blocks=1,
    )  # fmt: skip

    def dvae_loss(chosen: Tensor, step: int) -> Tensor:
        k = step // 100
        temperature = max(math.exp(-1e-6 * 100 * k * (k + 1) / 2), 0.5)
        return dvae(known.images[chosen] / 255, return_loss=True, temp=temperature)

    steps = [fit(dvae, dvae_loss, seconds["dvae"], 8, 1e-3, math.inf)]
    with torch.no_grad():
        tokens = torch.cat([dvae.get_codebook_indices(x / 255) for x in known.images.split(500)])
    text = encode(known.captions)
    prior = peer.DALLE(
        dim=d.width, vae=dvae, num_text_tokens=d.text_vocab + 1, text_seq_len=d.text_len,
        depth=d.n_layers, heads=d.n_heads, dim_head=d.head_dim,
        attn_types=("axial_row", "axial_col", "axial_row", "conv_like"),
    )  # fmt: skip
    steps.append(fit(prior, lambda chosen, _: prior(text[chosen], tokens[chosen], return_loss=True),
                     seconds["dalle"], 16, lr, 0.5))  # fmt: skip
    print(f"dalle-pytorch: {steps[0]} updates of its dVAE, {steps[1]} of its DALLE", flush=True)
    return dvae.eval(), prior.eval(), encode


@torch.inference_mode()
def measure_peer(dvae, prior, encode: Callable, seed: int) -> dict[str, dict[str, float]]:
    """As `measure`, for what `train_peer` returns; one sample at temperature 1, nothing cut."""
    shown = lambda x: (x / 2 + 0.5).clamp(0, 1)  # noqa: E731  its images lie in [-1, 1]

    def draw(cases):
        torch.manual_seed(seed)
        rebuilt = dvae.decode(dvae.get_codebook_indices(cases.images / 255))
        drawn = prior.generate_images(encode(cases.captions), filter_thres=0.0, use_cache=True)
        return {"rebuilt": (shown(rebuilt), cases.attributes), "one": (shown(drawn), cases.wanted)}

    return mark(seed, draw)


def table(rows: list[dict]) -> str:
    """Lay rows out as Markdown: means over the seeds, and the worst seed in brackets."""
    lines = [
        "# Records of the toy world",
        "",
        __doc__.split("Run:")[0].split("\n\n", 1)[1].strip(),
        "",
        "| change | seeds | tokenizer + dVAE + prior, CPU-s | rebuilt seen / held-out "
        "| one sample seen / held-out (worst seed) | best of 16 / 64, held-out | CLIP, CPU-s |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        runs = row["runs"]
        seconds = [sum(r["seconds"].get(stage, 0) for stage in STAGES) for r in runs]
        parts = [f"{_mean(r['seconds'].get(s, 0) for r in runs):.0f}" for s in STAGES[1:]]
        cell = {
            (kind, name): [r["shares"][kind][name] for r in runs if name in r["shares"][kind]]
            for kind in KINDS
            for name in ("rebuilt", "one", "best of 16", "best of 64")
        }
        show = {key: f"{_mean(values):.1f}" if values else "–" for key, values in cell.items()}
        clip = [r["seconds"]["clip"] for r in runs if "clip" in r["seconds"]]
        lines.append(
            f"| {row['change']} | {len(runs)} | {_mean(seconds):.0f} ({' + '.join(parts)}) "
            f"| {show['seen', 'rebuilt']} / {show['held_out', 'rebuilt']} "
            f"| {show['seen', 'one']} / **{show['held_out', 'one']}** "
            f"({min(cell['held_out', 'one']):.1f}) "
            f"| {show['held_out', 'best of 16']} / {show['held_out', 'best of 64']} "
            f"| {f'{_mean(clip):.0f}' if clip else '–'} |"
        )
    return "\n".join(lines) + "\n"


def _mean(values) -> float:
    values = list(values)
    return sum(values) / len(values)


def main() -> None:
    """Train and measure one row, add it to records.json, write records.md."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("overrides", nargs="*", help="section.field=value")
    parser.add_argument("--change", default="the toy preset")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--candidates", type=int, default=0, help="train CLIP, draw so many")
    parser.add_argument("--peer", action="store_true", help="a row of dalle-pytorch")
    parser.add_argument("--peer-lr", type=float, default=3e-4, help="of its DALLE (default 3e-4)")
    parser.add_argument("--table", action="store_true", help="only write records.md again")
    parser.add_argument("--runs", type=Path, default=HERE.parent / "runs" / "records")
    options = parser.parse_args()
    torch.set_num_threads(1)
    path = HERE / "records.json"
    rows = json.loads(path.read_text()) if path.exists() else []
    if not options.table:
        row = {"change": options.change, "overrides": options.overrides, "runs": []}
        for seed in options.seeds:
            config = get_config("toy", [*options.overrides, f"seed={seed}"])
            if options.peer:
                if dalle_pytorch_package() is None:
                    raise SystemExit(DALLE_PYTORCH)
                ours = [r for r in rows if not r.get("peer")][-1]["runs"]
                seconds = {s: _mean(r["seconds"][s] for r in ours) for s in STAGES}
                tokenizer = Pipeline.load(JUDGE.parent).tokenizer
                trained = train_peer(config, tokenizer, seconds, options.peer_lr)
                shares = measure_peer(*trained, seed)
                row["peer"] = True
                row["runs"].append({"seed": seed, "seconds": seconds, "shares": shares})
                print(json.dumps(row["runs"][-1]), flush=True)
                continue
            run = options.runs / f"{len(rows):02d}-seed{seed}"
            seconds = train(config, run, options.candidates > 0)
            row["runs"].append({"seed": seed, "seconds": seconds})
            row["runs"][-1]["shares"] = measure(run, seed, options.candidates)
            print(json.dumps(row["runs"][-1]), flush=True)
        rows.append(row)
        path.write_text(json.dumps(rows, indent=1) + "\n")
    (HERE / "records.md").write_text(table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
