"""The map of DALL-E: one picture for all notebooks, with the stage at hand lit.

Source: Ramesh et al. 2021, arXiv:2102.12092, section 2.
"""

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from minidalle.plot import COLOURS, DPI

BLUE, ORANGE = COLOURS[0], COLOURS[1]  # text tokens, image tokens
LIT, DARK, INK = "#F0E442", "#EEEEEE", "#222222"
STAGES = {  # name: (notebook and title, left, bottom, width, height)
    "bpe": ("01 BPE", 24, 70, 17, 14),
    "dvae": ("02 dVAE\nencoder", 24, 42, 17, 17),
    "dalle": ("04 transformer", 65, 40, 28, 42),
    "attention": ("03 masks", 67.5, 60, 23, 9),
    "generate": ("06 sample", 65, 11, 28, 14),
    "decoder": ("02 dVAE\ndecoder", 41, 9, 17, 17),
    "clip": ("05 CLIP\nranks", 15, 9, 15, 17),
}


def show_map(lit: str = "all") -> Figure:
    """Draw how a caption and a picture become tokens, one stream, and pictures again.

    lit: 'bpe', 'dvae', 'attention', 'dalle', 'clip', 'generate', or 'all'.
    Raises ValueError for another stage.
    """
    names = [name for name in STAGES if name != "decoder"]
    if lit not in (*names, "all"):
        raise ValueError(f"unknown stage {lit!r}; choose from {', '.join(names)}, all")
    figure, axis = plt.subplots(figsize=(7.2, 3.5), dpi=DPI, layout="constrained")
    axis.set(xlim=(-1, 101), ylim=(2, 93))
    axis.axis("off")
    for name, (title, *place) in STAGES.items():
        on = lit in ("all", name) or (name == "decoder" and lit == "dvae")
        _box(axis, title, *place, on=on, top=name == "dalle")
    _draw_text_path(axis)
    _draw_picture_path(axis)
    _draw_way_back(axis)
    return figure


def _draw_text_path(axis: Axes) -> None:
    axis.text(9, 77, '"a small\nred heart"', ha="center", va="center", fontsize=10, color=INK)
    _arrow(axis, (19, 77), (23, 77))
    _arrow(axis, (42, 77), (45, 77))
    _cells(axis, 46, 75, 1, 4, BLUE)
    axis.text(52, 82, "text tokens", ha="center", fontsize=9, color=INK)
    _arrow(axis, (59, 77), (64, 72))


def _draw_picture_path(axis: Axes) -> None:
    _heart(axis, 4, 43)
    _arrow(axis, (19, 50), (23, 50))
    _arrow(axis, (42, 50), (45, 50))
    _cells(axis, 46, 43, 4, 4, ORANGE)
    axis.text(52, 36.5, "image tokens", ha="center", fontsize=9, color=INK)
    _arrow(axis, (59, 50), (64, 55))
    _cells(axis, 69, 50, 1, 3, BLUE)  # the one stream
    _cells(axis, 78, 50, 1, 4, ORANGE)
    axis.text(79, 43.5, "one stream", ha="center", fontsize=9, color=INK)


def _draw_way_back(axis: Axes) -> None:
    _arrow(axis, (79, 39), (79, 26))
    _arrow(axis, (64, 17.5), (59, 17.5))
    _arrow(axis, (40, 17.5), (31, 17.5))
    _arrow(axis, (14, 17.5), (11.5, 17.5))
    axis.text(35.5, 20.5, "many", ha="center", fontsize=9, color=INK)
    _heart(axis, 0, 11, size=10.5, height=15)
    axis.text(5, 5, "best", ha="center", fontsize=9, color=INK)


def _box(axis: Axes, title: str, x, y, width, height, on: bool, top: bool) -> None:
    axis.add_patch(
        FancyBboxPatch(
            (x, y), width, height, boxstyle="round,pad=0,rounding_size=2",
            linewidth=2.2 if on else 1, facecolor=LIT if on else DARK,
            edgecolor=INK if on else "#888888",
        )
    )  # fmt: skip
    at = y + height - 5.5 if top else y + height / 2
    weight = "bold" if on else "normal"
    axis.text(x + width / 2, at, title, ha="center", va="center", fontsize=10, weight=weight)


def _arrow(axis: Axes, start, end) -> None:
    axis.annotate("", end, start, arrowprops=dict(arrowstyle="-|>", color=INK, linewidth=1.4))


def _cells(axis: Axes, x: float, y: float, rows: int, columns: int, colour: str) -> None:
    for row in range(rows):
        for column in range(columns):
            at = (x + 3 * column, y + 4 * row)
            axis.add_patch(Rectangle(at, 2.6, 3.5, facecolor=colour, edgecolor="white"))


def _heart(axis: Axes, x: float, y: float, size: float = 11, height: float = 15) -> None:
    axis.add_patch(Rectangle((x, y), size, height, facecolor="#0E165C"))
    axis.text(
        x + size / 2, y + height / 2, "\N{BLACK HEART SUIT}", color="#D62028", fontsize=20,
        ha="center", va="center",
    )  # fmt: skip
