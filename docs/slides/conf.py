"""The slides: one deck for each lecture of docs/syllabus.md. Build them with `make slides`.

A slide is a heading, one image and one sentence. The image is a diagram, or a figure as a notebook
stored it: `[its figure](../../notebooks/02_dvae.ipynb#break)` is that of the cell `break`. A
heading alone stands for the slide that another deck has under it.
"""

import base64
import json
import re
from pathlib import Path

HERE = Path(__file__).resolve().parent
FIGURES = HERE.parent / "_build" / "figures"  # what is taken out of the notebooks

project = "minidalle"
author = "the minidalle contributors"
extensions = ["myst_parser", "sphinx_revealjs"]
root_doc = "lecture-1"
exclude_patterns = ["_build"]
revealjs_static_path = ["slides.css"]
revealjs_css_files = ["slides.css"]
revealjs_style_theme = "white"
revealjs_use_section_ids = True
revealjs_script_conf = {"width": 1280, "height": 720, "hash": True, "transition": "none",
                        "slideNumber": "c/t", "controlsLayout": "edges"}  # fmt: skip
suppress_warnings = ["myst.header", "toc.not_included"]

DECKS = sorted(HERE.glob("lecture-*.md"))


def slides(text: str) -> dict[str, str]:
    """Return heading -> what stands below it, of one deck."""
    parts = re.split(r"^## (.+)\n", text, flags=re.M)[1:]
    return {title: body.strip() for title, body in zip(parts[::2], parts[1::2], strict=True)}


def borrow(text: str) -> str:
    """Fill the slides that are a heading alone. Raises ValueError unless one deck has it."""
    for title in [title for title, body in slides(text).items() if not body]:
        decks = [slides(deck.read_text(encoding="utf-8")).get(title) for deck in DECKS]
        bodies = [body for body in decks if body]
        if len(bodies) != 1:
            raise ValueError(f"{len(bodies)} decks have the slide {title!r}; it must be one")
        text = text.replace(f"## {title}\n", f"## {title}\n\n{bodies[0]}\n")
    return text


def take_figure(notebook: str, cell: str) -> tuple[str, bytes]:
    """Return (words for those who do not see it, PNG) of the figure that a cell stored.

    Raises ValueError where the notebook has no such figure.
    """
    path = HERE / notebook
    for found in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        for output in found.get("outputs", ()) if found["id"] == cell else ():
            if "image/png" in output.get("data", {}):
                return found["metadata"]["alt"], base64.b64decode(output["data"]["image/png"])
    raise ValueError(f"{path.name} has no figure in a cell {cell!r}")


def place_figure(link: re.Match) -> str:
    """Write the figure of a link beside the slides' sources. Returns the link to it."""
    alt, png = take_figure(link[1], link[2])
    path = FIGURES / f"{Path(link[1]).stem}-{link[2]}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png)
    return f"![{alt}](../_build/figures/{path.name})"


def complete(app, name: str, source: list[str]) -> None:
    """Make of a deck's text what Sphinx can read."""
    text = borrow(source[0])
    source[0] = re.sub(r"\[its figure\]\((\S+\.ipynb)#([\w-]+)\)", place_figure, text)


def setup(app) -> None:
    """Sphinx calls this once."""
    app.connect("source-read", complete)
