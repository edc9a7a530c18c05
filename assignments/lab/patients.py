"""Train the patients of the debugging lab: `program.py` with one line changed in each.

    python assignments/lab/patients.py            # all that have no result yet: a minute each

writes results/<mistake>.npz (curves, reconstructions, samples) for each; `healthy` has no mistake.
"""

import sys
import time
from functools import cache
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).resolve().parent
PROGRAM = (HERE / "program.py").read_text(encoding="utf-8")
# Name -> (the right line, the wrong line), in the order of the patients.
MISTAKES = {
    "greedy": ("z[:, i] = p.multinomial(1).squeeze(1)", "z[:, i] = p.argmax(-1)"),
    "too_much_kl": ("return error + 0.002 * kl.mean()", "return error + 0.002 * kl.sum()"),
    "sees_ahead": ("dtype=torch.bool).tril()", "dtype=torch.bool).tril(1)"),
    "divided_twice": (
        "[dvae.tokens(x).flatten(1) for x in (images, new_images)]",
        "[dvae.tokens(x / 255).flatten(1) for x in (images, new_images)]",
    ),
    "transposed": ("return z.view(-1, G, G)", "return z.view(-1, G, G).mT"),
    "captions_shuffled": (
        "loss = prior.loss(text[batch], z[batch])",
        "loss = prior.loss(text[torch.randint(len(text), (BATCH,))], z[batch])",
    ),
    "no_noise": ("y = ((logits + noise) / tau).softmax(1)", "y = (logits / tau).softmax(1)"),
    "always_the_same": (
        "batch = torch.randint(len(images), (BATCH,))",
        "batch = torch.arange(BATCH)",
    ),
    "no_column": (
        "self.row(cell // G) + self.column(cell % G)",
        "self.row(cell // G) + self.column(cell // G)",
    ),
    "no_sigmoid": (
        "return self.decoder(codes).sigmoid()",
        "return self.decoder(codes)",
    ),
}
DRAWING = ("greedy", "transposed", "no_sigmoid")  # these mistakes do not touch the training
CAPTIONS = ("red heart white", "blue triangle white", "yellow cross black", "green circle black")
SHOWN, EACH = 8, 4  # reconstructions; samples of each caption


def load(program: str) -> dict:
    """Run the text of a program. Returns its names."""
    names = {"__name__": "program"}
    exec(compile(program, "<program>", "exec"), names)
    return names


def ail(mistake: str) -> str:
    """Return the text of the program with one mistake; as it is for "healthy"."""
    if mistake == "healthy":
        return PROGRAM
    right, wrong = MISTAKES[mistake]
    assert PROGRAM.count(right) == 1, mistake
    return PROGRAM.replace(right, wrong)


@cache
def train_healthy() -> tuple[dict, dict, dict]:
    """Train the healthy program. Returns the weights of both stages, and the curves."""
    dvae, prior, curves = load(PROGRAM)["train"]()
    return dvae.state_dict(), prior.state_dict(), curves


@torch.no_grad()
def examine(mistake: str) -> dict[str, np.ndarray]:
    """Train a patient's two stages. Returns curves and images, small enough to keep."""
    names = load(ail(mistake))
    if mistake in ("healthy", *DRAWING):
        dvae, prior = names["DVAE"](), names["Prior"]()
        with torch.enable_grad():
            weights = train_healthy()
        dvae.load_state_dict(weights[0])
        prior.load_state_dict(weights[1])
        curves = weights[2]
    else:
        with torch.enable_grad():
            dvae, prior, curves = names["train"]()
    images, _ = names["draw_world"](SHOWN, seed=1)
    torch.manual_seed(1)
    text = torch.tensor([[names["WORDS"][w] for w in c.split()] for c in CAPTIONS])
    drawn = dvae.decode(prior.sample(text.repeat_interleave(EACH, 0)))
    many, _ = names["draw_world"](500, seed=2)
    found = {name: np.array(curve, np.float32) for name, curve in curves.items()}
    for name, shown in (("images", images), ("rebuilt", dvae.decode(dvae.tokens(images)))):
        found[name] = (255 * shown.clamp(0, 1)).byte().numpy()
    found["drawn"] = (255 * drawn.clamp(0, 1)).byte().numpy()
    found["codes"] = np.array(dvae.tokens(many).unique().numel())
    return found


def main(names: list[str]) -> None:
    torch.set_num_threads(1)
    for name in names or ["healthy", *MISTAKES]:
        path = HERE / "results" / f"{name}.npz"
        if path.exists() and not names:
            continue
        start = time.process_time()
        found = examine(name)
        path.parent.mkdir(exist_ok=True)
        np.savez_compressed(path, **found)
        ends = {k: round(float(found[k][-20:].mean()), 4) for k in ("dvae", "prior", "new")}
        seconds = time.process_time() - start
        print(f"{name}: {ends}, {found['codes']} codes, {seconds:.0f} s of CPU time", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
