"""Figures: sheets of pictures, masks, curves. The only home of matplotlib.

N pictures, H W pixels. Every function returns a Figure; in a notebook end the cell with
`plt.show()`, in a program give the figure to `save`.
"""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Tensor

from minidalle.checkpoint import write_atomically

DPI = 80
# Okabe and Ito's colours: told apart by colour-blind readers too (jfly.uni-koeln.de/color).
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#F0E442", "#000000")


def save(figure: Figure, path: str | Path) -> Path:
    """Write a figure as PNG, aside and renamed, and close it. Returns the path."""
    path = Path(path)
    write_atomically(path, lambda aside: figure.savefig(aside, format="png", dpi=figure.dpi))
    plt.close(figure)
    return path


def tile(images: Tensor, columns: int, gap: int = 2) -> Tensor:
    """Lay pictures (N, 3, H, W) out row by row on white -> (rows * (H + gap), …, 3) in [0, 1]."""
    n, _, height, width = images.shape
    rows = -(-n // columns)
    sheet = torch.ones(rows * (height + gap) - gap, columns * (width + gap) - gap, 3)
    for i, image in enumerate(images.detach().float().cpu().clamp(0, 1)):
        y, x = (i // columns) * (height + gap), (i % columns) * (width + gap)
        sheet[y : y + height, x : x + width] = image.permute(1, 2, 0)
    return sheet


def show_images(images: Tensor, columns: int = 8, title: str = "", side: float = 0.9) -> Figure:
    """Show pictures (N, 3, H, W) in [0, 1] in rows of `columns`, each `side` inches wide."""
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    figure, axes = plt.subplots(
        figsize=(columns * side, rows * side + 0.35 * bool(title)), dpi=DPI, layout="constrained"
    )
    axes.imshow(tile(images, columns).numpy(), interpolation="nearest")
    axes.axis("off")
    if title:
        axes.set_title(title, fontsize=10)
    return figure


def show_pairs(first: Tensor, second: Tensor, columns: int = 8, labels=("true", "rebuilt")) -> Figure:
    """Show each picture of `first` (N, 3, H, W) above its partner in `second`."""
    figure, axes = plt.subplots(
        2 * -(-len(first) // columns), 1, dpi=DPI, layout="constrained", squeeze=False,
        figsize=(columns * 0.9 + 0.8, 1.9 * -(-len(first) // columns)),
    )  # fmt: skip
    for i in range(0, len(first), columns):
        for j, images in enumerate((first, second)):
            axis = axes[2 * (i // columns) + j, 0]
            axis.imshow(tile(images[i : i + columns], columns).numpy(), interpolation="nearest")
            axis.set_ylabel(labels[j], rotation=0, ha="right", va="center")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
    return figure


def sample_sheet(
    captions: Sequence[str],
    columns: Sequence[tuple[str, Tensor]],
    notes: Sequence[Sequence[str]],
    title: str = "",
) -> Figure:
    """One row a caption: the caption, then one picture per column with a note under it.

    columns: (heading, pictures (N, 3, H, W)) each; notes[row][column] may be empty.
    """
    n_rows, n_columns = len(captions), len(columns)
    figure, axes = plt.subplots(
        n_rows, n_columns + 1, dpi=DPI, squeeze=False, layout="constrained",
        figsize=(2.6 + 1.05 * n_columns, 1.22 * n_rows + 0.6),
        gridspec_kw={"width_ratios": [2.6] + [1] * n_columns},
    )  # fmt: skip
    for row, caption in enumerate(captions):
        axes[row, 0].text(1, 0.5, caption, ha="right", va="center", fontsize=9, wrap=True)
        axes[row, 0].axis("off")
        for column, (heading, images) in enumerate(columns):
            axis = axes[row, column + 1]
            image = images[row].detach().float().cpu().clamp(0, 1).permute(1, 2, 0).numpy()
            axis.imshow(image, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.set_xlabel(notes[row][column], fontsize=8, labelpad=2)
            if row == 0:
                axis.set_title(heading, fontsize=9)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure
