"""Figures: sheets of pictures, masks, curves. The only home of matplotlib.

N pictures, H W pixels. Every function returns a Figure; in a notebook end the cell with
`plt.show()`, in a program give the figure to `save`.
"""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Tensor

from minidalle.files import write_atomically

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


def show_pairs(
    first: Tensor, second: Tensor, columns: int = 8, labels=("true", "rebuilt")
) -> Figure:
    """Show each picture of `first` (N, 3, H, W) above its partner in `second`."""
    figure, axes = plt.subplots(
        2 * -(-len(first) // columns), 1, dpi=DPI, layout="constrained", squeeze=False,
        figsize=(columns * 0.9 + 1.3, 1.9 * -(-len(first) // columns)),
    )  # fmt: skip
    for i in range(0, len(first), columns):
        for j, images in enumerate((first, second)):
            axis = axes[2 * (i // columns) + j, 0]
            axis.imshow(tile(images[i : i + columns], columns).numpy(), interpolation="nearest")
            axis.set_ylabel(labels[j], rotation=0, ha="right", va="center", labelpad=6)
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


def show_captioned(images: Tensor, captions: Sequence[str], columns: int = 6) -> Figure:
    """Show pictures (N, 3, H, W), each above its caption."""
    rows = -(-len(images) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(1.9 * columns, 1.95 * rows), dpi=DPI, squeeze=False
    )
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    for axis, image, caption in zip(axes.flat, images, captions, strict=False):
        axis.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
        axis.set_xlabel("\n".join(textwrap.wrap(caption, 26)[:3]), fontsize=8, labelpad=4)
    figure.subplots_adjust(left=0.01, right=0.99, top=0.99, bottom=0.09, hspace=0.45, wspace=0.08)
    return figure


def show_masks(masks: Mapping[str, Tensor], text_len: int = 0, side: float = 2.6) -> Figure:
    """Show masks (T, T) bool side by side: dark where query q (down) may see key k (across).

    Lines part the text_len text states from the image states.
    """
    figure, axes = plt.subplots(
        1, len(masks), figsize=(side * len(masks), side + 0.5), dpi=DPI, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for axis, (name, mask) in zip(axes[0], masks.items(), strict=True):
        axis.imshow(mask.numpy(), cmap="Blues", vmin=0, vmax=1.3, interpolation="nearest")
        if text_len:
            axis.axhline(text_len - 0.5, color=COLOURS[4], linewidth=1)
            axis.axvline(text_len - 0.5, color=COLOURS[4], linewidth=1)
        axis.set_title(name, fontsize=10)
        axis.set(xticks=[], yticks=[], xlabel="key")
    axes[0, 0].set_ylabel("query")
    return figure


def show_curves(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    x: str,
    y: str,
    title: str = "",
    log: str = "",
) -> Figure:
    """Draw a line for each (xs, ys), told apart by colour and by dashes.

    log: which axes are logarithmic, '', 'x', 'y' or 'xy'.
    """
    figure, axis = plt.subplots(figsize=(5.2, 2.9), dpi=DPI, layout="constrained")
    for i, (name, (xs, ys)) in enumerate(curves.items()):
        axis.plot(xs, ys, color=COLOURS[i], linestyle=("-", "--", "-.", ":")[i % 4], label=name)
    axis.set(xlabel=x, ylabel=y, title=title)
    if "x" in log:
        axis.set_xscale("log")
    if "y" in log:
        axis.set_yscale("log")
    axis.grid(alpha=0.3)
    if len(curves) > 1:
        axis.legend(fontsize=9, frameon=False)
    return figure


def show_tokens(image: Tensor, tokens: Tensor) -> Figure:
    """Show a picture (3, H, W) under its token grid, and the ids (h, w) beside it."""
    h, w = tokens.shape
    figure, axes = plt.subplots(1, 2, figsize=(6, 3), dpi=DPI, layout="constrained")
    axes[0].imshow(image.permute(1, 2, 0).numpy(), extent=(0, w, h, 0), interpolation="nearest")
    axes[1].set(xlim=(0, w), ylim=(h, 0), aspect="equal")
    for row in range(h):
        for column in range(w):
            at = (column + 0.5, row + 0.5)
            axes[1].text(*at, int(tokens[row, column]), ha="center", va="center", fontsize=8)
    for axis in axes:
        axis.set(xticks=range(w + 1), yticks=range(h + 1), xticklabels=[], yticklabels=[])
        axis.grid(color="#999999", linewidth=0.6)
        axis.tick_params(length=0)
    return figure
