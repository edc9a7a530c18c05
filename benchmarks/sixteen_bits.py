"""Can weights be kept in bfloat16? The toy prior with and without stochastic rounding.

Run: python benchmarks/sixteen_bits.py [--steps 400] [--seeds 2]
One process trains the toy prior, with two layers, on the drawn shapes (tokens of the shipped dVAE):
AdamW in float32; updates in the backward pass with moments in bfloat16 and weights in float32; the
same with the blocks' weights in bfloat16 and rounded stochastically (--bfloat16-weights); and
rounded to the nearest, which loses updates smaller than half of the last bit. Products are bfloat16
in all of them. bytes: of weights, gradients and moments for each parameter of a block.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from powersgd import SCENES, mean, prepare

from minidalle.config import Config, get_config
from minidalle.dalle import DALLE
from minidalle.scale import memory
from minidalle.training.optim import clip_gradients, learning_rate, make_optimizer

WAYS = {  # updates in the backward pass, weights of the blocks in bfloat16, rounded how
    "float32 AdamW": (False, False, ""),
    "in backward, bf16 moments": (True, False, ""),
    "the same, bf16 weights, stochastic": (True, True, "stochastic"),
    "the same, bf16 weights, nearest": (True, True, "nearest"),
}
BYTES = dict(zip(WAYS, (16, 8, 6, 6), strict=True))


def train(config: Config, pairs: dict, way: str, seed: int) -> list[float]:
    """Return the losses of all updates."""
    in_backward, short, rounding = WAYS[way]
    c, t, real = config.dalle, config.train_dalle, memory.stochastic_round
    model = DALLE(c, seed)
    if short:
        model.transformer.blocks.bfloat16()
    make = memory.backward_adamw if in_backward else make_optimizer
    optimizer, losses = make(model, t), []
    if rounding == "nearest":
        memory.stochastic_round = lambda new, bits: new.bfloat16()
    for step in range(t.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, t)
        rows = torch.randint(SCENES, (t.batch_size,), generator=torch.Generator().manual_seed(step))
        with torch.autocast("cpu", torch.bfloat16):
            loss, _ = model.loss({name: part[rows] for name, part in pairs.items()}, step)
        loss.backward()
        clip = optimizer.end_update if in_backward else clip_gradients
        clip(list(model.parameters()), t.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    memory.stochastic_round = real
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder) / "pairs.pt")
        pairs = torch.load(Path(folder) / "pairs.pt")
    changes = {"steps": args.steps, "warmup": 10, "batch_size": 8}
    training = [f"train_dalle.{name}={value}" for name, value in changes.items()]
    config = get_config("toy", ["dalle.n_layers=2", *training])
    tenth = args.steps // 10
    print(
        f"toy prior, 2 layers of width 128, {args.steps} updates of 8 pairs; torch "
        f"{torch.__version__}; loss over updates {tenth + 1} to {2 * tenth} and the last {tenth}"
    )
    for seed in range(args.seeds):
        for way, size in BYTES.items():
            losses = train(config, pairs, way, seed)
            early, late = mean(losses, slice(tenth, 2 * tenth)), mean(losses, slice(-tenth, None))
            print(f"seed {seed}  {way:<36}{size:>3} bytes{early:>9.4f}{late:>9.4f}", flush=True)


if __name__ == "__main__":
    main()
