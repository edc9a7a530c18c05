"""One figure a patient: the losses of both stages, reconstructions and samples.

`python assignments/lab/figures.py FOLDER` writes them all, to look at.
"""

import sys
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from patients import CAPTIONS, EACH, HERE

GREY, BLUE, ORANGE = "0.72", "#0072b2", "#d55e00"


def read(name: str) -> dict[str, np.ndarray]:
    """Return what a training stored."""
    return dict(np.load(HERE / "results" / f"{name}.npz"))


def tile(images: np.ndarray, gap: int = 2) -> np.ndarray:
    """Put images (n, 3, H, W) into one row (H, n * (W + gap), 3), on white."""
    n, _, height, width = images.shape
    row = np.full((height, n * (width + gap) - gap, 3), 255, np.uint8)
    for i, image in enumerate(images):
        row[:, i * (width + gap) : i * (width + gap) + width] = image.transpose(1, 2, 0)
    return row


def smooth(curve: np.ndarray, width: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Return (update, mean of the last `width` losses)."""
    means = curve[: len(curve) // width * width].reshape(-1, width).mean(1)
    return np.arange(len(means)) * width + width / 2, means


def draw(title: str, found: dict[str, np.ndarray], healthy: dict[str, np.ndarray]):
    """Return the figure of a patient, with the healthy program's losses in grey."""
    figure = plt.figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplot_mosaic([["dvae", "rebuilt"], ["prior", "drawn"]], width_ratios=[1, 1.7])
    for name, label in (("dvae", "stage 1: dVAE"), ("prior", "stage 2: prior")):
        for whose, colour, style in ((healthy, GREY, 4), (found, BLUE, 1.5)):
            axes[name].plot(*smooth(whose[name]), color=colour, lw=style)
        axes[name].set(title=label, ylabel="loss", ylim=(0, None))
    every = len(found["prior"]) // len(found["new"])
    steps = np.arange(len(found["new"])) * every
    axes["prior"].plot(steps, found["new"], ".", color=ORANGE, ms=4, label="on new images")
    axes["prior"].legend(frameon=False)
    axes["prior"].set(xlabel="update")
    rows = [tile(found["images"]), tile(found["rebuilt"])]
    show(axes["rebuilt"], rows, ("image", "rebuilt"))
    axes["rebuilt"].set_title(f"stage 1: {found['codes']} of 64 codes used")
    blocks = [tile(found["drawn"][i * EACH : (i + 1) * EACH]) for i in range(len(CAPTIONS))]
    gap = np.full((len(blocks[0]), 10, 3), 255, np.uint8)
    rows = [np.hstack([*blocks[i : i + 1], gap, blocks[i + 1]]) for i in (0, 2)]
    show(axes["drawn"], rows, ("", ""))
    height, width = len(rows[0]), rows[0].shape[1]
    for i, caption in enumerate(CAPTIONS):
        words = caption.split()
        axes["drawn"].text(
            (i % 2) * (width + 10) / 2, (i // 2) * (height + 9) - 1.5,
            f"{words[0]} {words[1]} on {words[2]}", va="bottom",
        )  # fmt: skip
    axes["drawn"].set_title("stage 2: four samples of each caption", pad=18)
    figure.suptitle(title, fontweight="bold")
    return figure


def show(ax, rows: list[np.ndarray], labels: tuple[str, ...]) -> None:
    """Show rows of images below each other, with labels at the left."""
    gap = np.full((9, rows[0].shape[1], 3), 255, np.uint8)
    ax.imshow(np.vstack([rows[0], gap, rows[1]]), interpolation="nearest")
    height = len(rows[0])
    ax.set_yticks([height / 2, height * 1.5 + 9], labels)
    ax.set_xticks([])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


if __name__ == "__main__":
    for path in sorted((HERE / "results").glob("*.npz")):
        figure = draw(path.stem, read(path.stem), read("healthy"))
        figure.savefig(Path(sys.argv[1]) / f"{path.stem}.png", dpi=80)
        plt.close(figure)
