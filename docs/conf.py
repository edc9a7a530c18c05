"""The site: README, the notebooks as they were committed, guides. Build it with `make site`."""

import os
import re
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from links import BRANCH, REPOSITORY

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
PAGES = [
    *sorted(f"docs/{path.stem}" for path in (ROOT / "docs").glob("*.md")),
    "assignments/README",
    "assignments/STUDENT",
    "data/README",
]

project = "minidalle"
author = "the minidalle contributors"
extensions = ["myst_nb", "sphinx-mathjax-offline"]  # mathematics without a network
root_doc = "README"  # the sources start at the root, so that the README's links hold
include_patterns = ["README.md", *(f"{page}.md" for page in PAGES), "notebooks/*.ipynb"]
exclude_patterns = [".*", "runs", "docs/_build", "**/.ipynb_checkpoints"]

nb_execution_mode = "off"  # the stored outputs are the ones that nbval checked
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]

html_theme = "sphinx_book_theme"
html_title = "minidalle"
html_theme_options = {"show_toc_level": 2, "home_page_in_toc": True}
html_copy_source = False


PLAYGROUND = """
```{raw} html
<p><a href="playground.html"><strong>The playground</strong></a>: type a caption and watch the toy
draw it, in your browser.</p>
```
"""  # the page itself is written by docs/playground/build.py, after the site


def point_outward(app, name: str, source: list[str]) -> None:
    """Make links to what is no page of the site lead to the repository, or to the slides."""

    def leads(link: re.Match) -> str:
        text, path = link[1], link[2]
        target = Path(os.path.normpath(ROOT / Path(name).parent / path))
        if "://" in path or str(target.relative_to(ROOT).with_suffix("")) in app.env.found_docs:
            return link[0]
        if target.parent == ROOT / "docs/slides":
            up = os.path.relpath(ROOT, ROOT / Path(name).parent)
            return f"<a href='{up}/slides/{target.stem}.html'>{text}</a>"
        kind = "tree" if target.is_dir() else "blob"
        return f"[{text}]({REPOSITORY}/{kind}/{BRANCH}/{target.relative_to(ROOT)})"

    source[0] = re.sub(r"(?<!!)\[([^][]*)\]\(([^)\s#]+)\)", leads, source[0])


def add_contents(app, name: str, source: list[str]) -> None:
    """Give the front page its link to the playground, and what the sidebar is made of."""
    if name == root_doc:
        source[0] = source[0].replace("\n## ", f"\n{PLAYGROUND}\n## ", 1)
        pages = [*(f"notebooks/{n}" for n in NOTEBOOKS), *PAGES]
        source[0] += "\n\n```{toctree}\n:hidden:\n\n" + "\n".join(pages) + "\n```\n"


def add_index(app, error: Exception | None) -> None:
    """The front page is README.html; servers look for index.html."""
    out = Path(app.outdir)
    if error is None and (out / "README.html").is_file():
        shutil.copyfile(out / "README.html", out / "index.html")


def setup(app) -> None:
    """Sphinx calls this once."""
    app.connect("source-read", point_outward)
    app.connect("source-read", add_contents)
    app.connect("build-finished", add_index)
