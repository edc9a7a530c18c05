# Grading restores this cell. The tests draw their inputs from SEED.
import base64
import hashlib
import warnings
import zlib
from functools import cache

import matplotlib.pyplot as plt
import torch
from torch.testing import assert_close

SEED = 0
torch.set_num_threads(1)  # for tensors this small, more threads only wait for each other
warnings.simplefilter("ignore")  # nbgrader gives no points to a test that prints a warning

# The program without its mistakes, packed so that nobody reads it by accident.
PACKED = """
"""
# For each patient a digest of its line's number. Trying all numbers works, and teaches nothing.
MARKS = {}
WORLD, LISTING = zlib.decompress(base64.b64decode(PACKED)).decode().split("\f")


def is_the_line(patient, number):
    """Say whether the mistake of this patient is in the line with this number."""
    digest = hashlib.sha256(f"patient {patient}, line {number}".encode()).hexdigest()
    return digest[:8] == MARKS[patient]


def treat(number, line):
    """Return the names of the program in which a line is exchanged and all others are right."""
    lines = LISTING.splitlines()
    old = lines[number - 1]
    lines[number - 1] = old[: len(old) - len(old.lstrip())] + line.strip()
    names = {"__name__": "program"}
    exec(WORLD + "\n".join(lines) + "\n", names)
    return names


@cache
def draw_world(n, seed):
    """A smaller world than the program's own, drawn once, for the tests."""
    names = {"__name__": "program"}
    exec(WORLD, names)
    return names["draw_world"](min(n, 48), seed)


@torch.no_grad()
def signs(number, line, seed):
    """Train a treated program for three updates. Returns its losses, images and samples."""
    names = treat(number, line)
    names["draw_world"] = draw_world
    with torch.enable_grad():
        dvae, prior, curves = names["train"](seed, updates=3)
    images, text = draw_world(48, 1)
    torch.manual_seed(seed)
    found = {f"the loss of the {name}": torch.tensor(curves[name]) for name in ("dvae", "prior")}
    found["the rebuilt images"] = dvae.decode(dvae.tokens(images[:8]))
    found["the samples"] = prior.sample(text[:8])
    return found


@cache
def healthy_signs(seed):
    return signs(1, LISTING.splitlines()[0], seed)


def train_and_show(number, line):
    """Train a treated program to the end, about half a minute, and draw what the figures draw."""
    names = treat(number, line)
    dvae, prior, curves = names["train"]()
    images, text = names["draw_world"](8, 1)
    with torch.no_grad():
        rows = [images, dvae.decode(dvae.tokens(images)), dvae.decode(prior.sample(text))]
    mosaic = torch.cat([torch.cat(list(row.clamp(0, 1)), 2) for row in rows], 1)
    _, axes = plt.subplots(1, 3, figsize=(10, 2.4), width_ratios=(1, 1, 1.6))
    axes[0].plot(curves["dvae"])
    axes[1].plot(curves["prior"])
    axes[2].imshow(mosaic.permute(1, 2, 0))
    for ax, title in zip(axes, ("stage 1", "stage 2", "images, rebuilt, samples"), strict=True):
        ax.set_title(title)
    axes[2].set_axis_off()
    plt.show()
