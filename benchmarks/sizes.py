"""What does a larger prior buy? The toy's prior in five widths, each trained on the same data.

Run: OMP_NUM_THREADS=1 python benchmarks/sizes.py [--heads 1 2 4 6 8] [--seeds 0 1]
Every size sees the same captions and image tokens in the same order, by the toy's own recipe
squeezed into 1000 updates of 16 pairs, in which each drawing is seen once; only the number of
heads, 32 numbers wide each, differs. After every 100 updates the averaged weights are tested on the
same 200 held-back pairs. Image tokens are those of the shipped dVAE. A seed changes the first
weights and the order of the data, so two seeds say how far a difference between two sizes can be
trusted; of the two largest sizes only the first was run.
Results are added to results/sizes.json, one row a size and seed, where notebook 07 reads them; a
size that is run again replaces its row.
Source: Kaplan et al. 2020, arXiv:2001.08361, for loss against size and compute.
"""

import argparse
import json
import tempfile
import time
from functools import cache
from itertools import islice, product
from pathlib import Path

import torch

from minidalle import data
from minidalle.config import Config, get_config
from minidalle.models import build, load
from minidalle.scale import arithmetic
from minidalle.stages import SHIPPED
from minidalle.train import fit

RESULTS = Path(__file__).resolve().parent / "results" / "sizes.json"
HEADS = (1, 2, 4, 6, 8)
SEEDS = (0, 1)
UPDATES, BATCH = 1000, 16
EVERY = 100  # updates between two tests
N_TEST = 200  # pairs of each test


def setting(heads: int, seed: int = 0, updates: int = UPDATES) -> Config:
    """Return the toy preset with so many heads, stopped after so many of UPDATES updates."""
    training = dict(steps=updates, lr_steps=UPDATES, batch_size=BATCH, warmup=50)
    training |= dict(eval_every=EVERY, save_every=UPDATES)
    changes = [f"train_dalle.{name}={value}" for name, value in training.items()]
    once = f"data.n_train={UPDATES * BATCH}"  # each drawing is seen once
    return get_config("toy", [f"seed={seed}", f"dalle.n_heads={heads}", once, *changes])


@cache
def pairs(seed: int, updates: int) -> tuple[list[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    """Return the batches of the first updates, and the held-back pairs: "text" and "tokens"."""
    config = setting(HEADS[0], seed)
    tokenizer, dvae = (load(SHIPPED / "toy", stage) for stage in ("tokenizer", "dvae"))
    ready = data.batches(data.load(config, "train"), config, "dalle", tokenizer, dvae)(0)
    images, captions = data.first(data.load(config, "test"), N_TEST)
    with torch.no_grad():
        tokens = [dvae.tokens(part.float() / 255).flatten(1) for part in images.split(50)]
    text = tokenizer.encode_batch(captions, config.dalle.text_len - 1)
    return list(islice(ready, updates)), {"text": text, "tokens": torch.cat(tokens)}


def train(heads: int, seed: int = 0, updates: int = UPDATES) -> dict:
    """Train one size, or only the first of its updates, and return its row."""
    config, history = setting(heads, seed, updates), []
    batches, held_back = pairs(seed, updates)

    def evaluate(model, step: int) -> dict[str, float]:
        loss, found = model.loss(held_back, step)
        parts = (found["image_nats"].item(), found["text_nats"].item())
        history.append([step, *(round(nats, 4) for nats in parts)])
        return {"loss": loss.item()}

    model, began = build(config, "dalle"), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        fit(model, lambda step: iter(batches[step:]), config.train_dalle, folder, evaluate=evaluate)
    parameters = arithmetic.parameters(config.dalle)
    return {
        "heads": heads,
        "seed": seed,
        "width": config.dalle.width,
        "parameters": sum(parameters.values()),
        "operations": arithmetic.training_flops(config.dalle) * BATCH,
        "seconds": round(time.process_time() - began, 1),
        "history": history,  # updates done, nats per image token, nats per text token
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--heads", type=int, nargs="+", default=HEADS)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for heads, seed in product(options.heads, options.seeds):
        row = train(heads, seed)
        rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
        rows = [r for r in rows if (r["heads"], r["seed"]) != (heads, seed)] + [row]
        rows.sort(key=lambda r: (r["heads"], r["seed"]))
        lines = ",\n".join(json.dumps(r) for r in rows)
        RESULTS.write_text(f"[\n{lines}\n]\n")
        _, image, text = row["history"][-1]
        print(
            f"{heads} heads, seed {seed}, {row['parameters']:9,} parameters, "
            f"{row['seconds']:4.0f} CPU-s: "
            f"{image:.4f} nats per image token, {text:.4f} per text token",
            flush=True,
        )


if __name__ == "__main__":
    main()
