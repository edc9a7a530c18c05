"""Guidance against exactness and variety, for the shipped priors: what does it buy and cost?

For guidance 1, 2, 4 and 8: the share of samples in which the judge reads all that the caption
states, at temperature 1 and unchosen, and how far two samples of one caption differ: the share of
their tokens that are not the same, and the root mean square between their pixels in [0, 1].
Run: OMP_NUM_THREADS=1 python benchmarks/guidance.py [toy scenes mnist] [--n 128]
writes results/guidance.json; notebook 06 shows it.
"""

import argparse
import json
from pathlib import Path

import torch

from minidalle.evaluation import metrics
from minidalle.evaluation.judge import Judge
from minidalle.evaluation.measure import Cases, load_cases
from minidalle.files import write_text
from minidalle.generate import Pipeline, sample
from minidalle.stages import SHIPPED
from minidalle.training.finished import read_model

OUT = Path(__file__).resolve().parent / "results" / "guidance.json"
STRENGTHS = (1.0, 2.0, 4.0, 8.0)
M = 2  # samples of each caption


@torch.inference_mode()
def measure(pipeline: Pipeline, judge: Judge, cases: Cases, strength: float) -> dict[str, float]:
    """Return the share of exact samples and two measures of variety."""
    text = pipeline.tokenizer.encode_batch(cases.captions, pipeline.prior.caption_len)
    rows, generator = text.repeat_interleave(M, 0), torch.Generator().manual_seed(0)
    tokens = torch.cat([
        sample(pipeline.prior, part, len(part), guidance=strength, generator=generator)
        for part in rows.split(128)
    ])  # fmt: skip
    images = pipeline.decode(tokens)
    wanted = [w for w in cases.wanted for _ in range(M)]
    exact = metrics.accuracy(judge.read(images), wanted, mark=cases.mark)["exact"]
    (a, b), (x, y) = (t.unflatten(0, (-1, M)).unbind(1) for t in (tokens, images))
    return {
        "exact": exact["share"],
        "tokens": (a != b).float().mean().item(),
        "pixels": (x - y).square().flatten(1).mean(1).sqrt().mean().item(),
    }


def main() -> None:
    """Measure presets one by one; those measured before and not named stay in the file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("presets", nargs="*", default=["toy", "scenes", "mnist"])
    parser.add_argument("--n", type=int, default=128, help="captions of each kind (default 128)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = json.loads(OUT.read_text()) if OUT.exists() else {}
    for preset in args.presets:
        pipeline, judge = Pipeline.load(SHIPPED / preset), Judge.load(SHIPPED / preset / "judge")
        config = read_model(SHIPPED / preset / "dalle")[1]
        found[preset] = {"n": args.n, "caption_dropout": config.dalle.caption_dropout}
        for kind, cases in load_cases(config, args.n).items():
            found[preset][kind] = {}
            for strength in STRENGTHS:
                row = found[preset][kind][f"{strength:g}"] = measure(
                    pipeline, judge, cases, strength
                )
                shown = ", ".join(f"{name} {value:.3f}" for name, value in row.items())
                print(f"{preset}, {kind}, guidance {strength:g}: {shown}", flush=True)
        write_text(OUT, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
