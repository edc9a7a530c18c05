"""Figures: sheets of images, masks, curves. Nothing else imports matplotlib.

N images, H W pixels. Every `show_…` returns a Figure; in a notebook end the cell with `plt.show()`,
in a program give the figure to `save`. Captions are shown as they are: a `$` in one is no maths.
"""

import base64
import textwrap
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Tensor

from minidalle.files import write_atomically

DPI = 80
# Okabe and Ito's colours: told apart by colour-blind readers too (jfly.uni-koeln.de/color).
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#F0E442", "#000000")
literal = plt.rc_context({"text.parse_math": False})  # decorates what shows captions


def save(figure: Figure, path: str | Path) -> Path:
    """Write a figure as PNG, aside and renamed, and close it. Returns the path."""
    path = Path(path)
    write_atomically(path, lambda aside: figure.savefig(aside, format="png", dpi=figure.dpi))
    plt.close(figure)
    return path


def data_uri(what: Tensor | Figure) -> str:
    """Turn an image (3, H, W), uint8 or in [0, 1], or a figure into the text of its PNG in a page.

    A figure is drawn at twice its resolution, sharp on fine screens, and closed.
    Raises ValueError for a tensor of another shape.
    """
    png = BytesIO()
    if isinstance(what, Figure):
        what.savefig(png, format="png", dpi=2 * what.dpi)
        plt.close(what)
    elif what.ndim == 3 and what.shape[0] == 3:
        plt.imsave(png, _pixels(what), format="png")
    else:
        raise ValueError(f"an image must be (3, H, W), got {tuple(what.shape)}")
    return "data:image/png;base64," + base64.b64encode(png.getvalue()).decode("ascii")


def _pixels(image: Tensor):
    """(3, H, W), uint8 or in [0, 1] -> a numpy array (H, W, 3) uint8."""
    if image.is_floating_point():
        image = (image.detach().clamp(0, 1) * 255).round().byte()
    return image.permute(1, 2, 0).contiguous().cpu().numpy()


def tile(images: Tensor, columns: int, gap: int = 2) -> Tensor:
    """Lay images (N, 3, H, W) out row by row on white -> (rows * (H + gap), …, 3) in [0, 1]."""
    n, _, height, width = images.shape
    rows = -(-n // columns)
    sheet = torch.ones(rows * (height + gap) - gap, columns * (width + gap) - gap, 3)
    for i, image in enumerate(images.detach().float().cpu().clamp(0, 1)):
        y, x = (i // columns) * (height + gap), (i % columns) * (width + gap)
        sheet[y : y + height, x : x + width] = image.permute(1, 2, 0)
    return sheet


@literal
def show_images(images: Tensor, columns: int = 8, title: str = "", side: float = 0.9) -> Figure:
    """Show images (N, 3, H, W) in [0, 1] in rows of `columns`, each `side` inches wide."""
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    size = (columns * side, rows * side + 0.35 * bool(title))
    figure, axis = plt.subplots(figsize=size, dpi=DPI, layout="constrained")
    axis.imshow(tile(images, columns).numpy(), interpolation="nearest")
    axis.axis("off")
    axis.set_title(title, fontsize=10)
    return figure


@literal
def show_pairs(
    first: Tensor, second: Tensor, columns: int = 8, labels=("true", "rebuilt")
) -> Figure:
    """Show each image of `first` (N, 3, H, W) above its partner in `second`."""
    rows = -(-len(first) // columns)
    figure, axes = plt.subplots(
        2 * rows, 1, figsize=(columns * 0.9 + 1.3, 1.9 * rows), dpi=DPI, layout="constrained"
    )
    for i, axis in enumerate(axes):
        images = (first, second)[i % 2][columns * (i // 2) :][:columns]
        _show(axis, tile(images, columns).numpy())
        axis.set_ylabel(labels[i % 2], rotation=0, ha="right", va="center", labelpad=6)
        axis.spines[:].set_visible(False)
    return figure


@literal
def sample_sheet(
    captions: Sequence[str],
    columns: Sequence[tuple[str, Tensor]],
    notes: Sequence[Sequence[str]],
    title: str = "",
) -> Figure:
    """One row a caption: the caption, then one image per column with a note under it.

    columns: (heading, images (N, 3, H, W)) each; notes[row][column] may be empty.
    """
    # One axis measured in inches: an axis for each image would take seconds to lay out.
    left, side, pitch, top = 2.6, 0.95, 1.22, 0.55
    width, height = left + 1.05 * len(columns), top + pitch * len(captions)
    figure = plt.figure(figsize=(width, height), dpi=DPI)
    axis = figure.add_axes((0, 0, 1, 1))
    for column, (heading, images) in enumerate(columns):
        x = left + 1.05 * column
        axis.text(x + side / 2, top - 0.05, heading, ha="center", va="bottom", fontsize=9)
        for row in range(len(captions)):
            y = top + pitch * row
            at = (x, x + side, y + side, y)
            axis.imshow(_pixels(images[row]), interpolation="nearest", extent=at)
            axis.add_patch(plt.Rectangle((x, y), side, side, fill=False, linewidth=0.8))
            note = notes[row][column]
            axis.text(x + side / 2, y + side + 0.03, note, ha="center", va="top", fontsize=8)
    for row, caption in enumerate(captions):
        y = top + pitch * row + side / 2
        axis.text(left - 0.1, y, wrap(caption, 32, 5), ha="right", va="center", fontsize=9)
    axis.set(xlim=(0, width), ylim=(height, 0), aspect="auto")
    axis.axis("off")
    figure.suptitle(title, fontsize=11, y=1 - 0.08 / height, va="top")
    return figure


@literal
def show_captioned(images: Tensor, captions: Sequence[str], columns: int = 6) -> Figure:
    """Show images (N, 3, H, W), each below its caption."""
    rows = -(-len(images) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(1.9 * columns, 2.1 * rows), dpi=DPI, squeeze=False
    )
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    for axis, image, caption in zip(axes.flat, images, captions, strict=False):
        _show(axis, _pixels(image))
        axis.set_title(wrap(caption, 22, 3), fontsize=9, pad=4)
    figure.subplots_adjust(0.01, 0.01, 0.99, 1 - 0.25 / rows, hspace=0.36, wspace=0.08)
    return figure


def wrap(caption: str, width: int, most: int) -> str:
    """Break a caption into at most `most` lines; matplotlib's own wrapping would read `$`."""
    lines = [line for part in caption.split("\n") for line in textwrap.wrap(part, width)]
    return "\n".join(lines[:most]) + " …" * (len(lines) > most)


def _show(axis, pixels) -> None:
    axis.imshow(pixels, interpolation="nearest")
    axis.set(xticks=[], yticks=[])


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

    log: which axes are logarithmic, '', 'x', 'y' or 'xy'. Only their ticks are set as maths.
    """
    figure, axis = plt.subplots(figsize=(5.2, 2.9), dpi=DPI, layout="constrained")
    for i, (name, (xs, ys)) in enumerate(curves.items()):
        style = dict(color=COLOURS[i % 8], linestyle=("-", "--", "-.", ":")[i % 4])
        axis.plot(xs, ys, label=name, **style)
    axis.set_xlabel(x, parse_math=False)
    axis.set_ylabel(y, parse_math=False)
    axis.set_title(title, parse_math=False)
    axis.set(xscale="log" if "x" in log else "linear", yscale="log" if "y" in log else "linear")
    axis.grid(alpha=0.3)
    if len(curves) > 1:
        for text in axis.legend(fontsize=9, frameon=False).get_texts():
            text.set_parse_math(False)
    return figure


def show_panels(
    panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]], x: str, columns: int = 2
) -> Figure:
    """Draw a small axis for each panel, with a line for each list of points (x, y) in it."""
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(4.2 * columns, 2.4 * rows), dpi=DPI, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    for axis, (title, lines) in zip(axes.flat, panels.items(), strict=False):
        for i, (name, points) in enumerate(lines.items()):
            xs, ys = zip(*points, strict=True)
            ys = [float("nan") if y is None else y for y in ys]
            axis.plot(xs, ys, label=name, color=COLOURS[i % 8], marker="." if len(xs) < 20 else "")
        axis.set_title(title, fontsize=10)
        axis.set_xlabel(x)
        axis.grid(alpha=0.3)
    axes[0, 0].legend(fontsize=9, frameon=False)
    return figure


def show_tokens(image: Tensor, tokens: Tensor) -> Figure:
    """Show an image (3, H, W) under its token grid, and the ids (h, w) beside it."""
    h, w = tokens.shape
    figure, axes = plt.subplots(1, 2, figsize=(6, 3), dpi=DPI, layout="constrained")
    axes[0].imshow(_pixels(image), extent=(0, w, h, 0), interpolation="nearest")
    axes[1].set(xlim=(0, w), ylim=(h, 0), aspect="equal")
    for row in range(h):
        for column in range(w):
            at = (column + 0.5, row + 0.5)
            axes[1].text(*at, int(tokens[row, column]), ha="center", va="center", fontsize=9)
    for axis in axes:
        axis.set(xticks=range(w + 1), yticks=range(h + 1), xticklabels=[], yticklabels=[])
        axis.grid(color="#999999", linewidth=0.6)
        axis.tick_params(length=0)
    return figure
