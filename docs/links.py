"""The one place for the addresses of the repository, its site and its notebooks on Colab.

Whoever copies the repository changes OWNER, then runs `make notebooks`: `notebooks/execute.py`
gives the source of each cell to `relink`. CITATION.cff repeats the address, and a test compares it.
"""

import re

OWNER, NAME, BRANCH = "minidalle", "minidalle", "main"
REPOSITORY = f"https://github.com/{OWNER}/{NAME}"
SITE = f"https://{OWNER}.github.io/{NAME}/"

# What a notebook holds: its badge, and the line of the first cell that Colab runs.
_COLAB = re.compile(r"https://colab\.research\.google\.com/github/[^/\s]+/[^/\s]+/blob/[^/\s]+/")
_CLONE = re.compile(r"(!git clone [^\n]*?)https://github\.com/\S+")
_FOLDER = re.compile(r"(%cd -q )[^/\s]+(/notebooks)")  # git names the folder after the repository


def colab(notebook: str) -> str:
    """Return the address that opens a notebook on Colab; notebook is a name such as "02_dvae"."""
    path = f"{OWNER}/{NAME}/blob/{BRANCH}/notebooks/{notebook}.ipynb"
    return f"https://colab.research.google.com/github/{path}"


def relink(source: str) -> str:
    """Return the source of a notebook's cell with our addresses in its badge and its set-up line.

    Links to other repositories stay. Safe to repeat: our own addresses are replaced by themselves.
    """
    ours = f"https://colab.research.google.com/github/{OWNER}/{NAME}/blob/{BRANCH}/"
    source = _COLAB.sub(ours, source)
    source = _CLONE.sub(rf"\g<1>{REPOSITORY}", source)
    return _FOLDER.sub(rf"\g<1>{NAME}\g<2>", source)
