"""Convert an assignment's tests to one plain pytest file, and its notebook to a student's release.

`python assignments/to_pytest.py a1_tokens --out mine` writes mine/test_a1_tokens.py with all tests;
with --visible only those that students may see. One source: the notebook in `source/`. Where the
file runs, neither nbgrader nor this folder is needed.
"""

import argparse
import re
import types
from pathlib import Path

import quick

GRADED = tuple(name for name in quick.ASSIGNMENTS if name != "a6_report")  # a person reads a6
SOLUTION = re.compile(r"^( *)### BEGIN SOLUTION\n.*?^ *### END SOLUTION$", re.M | re.S)
SECRET = re.compile(r"^ *### BEGIN (HIDDEN TESTS|MARK SCHEME)\n.*?^ *### END \1\n?", re.M | re.S)
STUB = {
    "code": r"\1# YOUR CODE HERE\n\1raise NotImplementedError()",
    "markdown": "YOUR ANSWER HERE",
}


def convert(name: str, seed: int = 0, hidden: bool = True) -> str:
    """Return the text of a pytest file that grades an assignment's notebook.

    hidden=False leaves out the hidden tests, for a file that students get.
    """
    parts = []
    for cell in quick.read_cells(name):
        if cell["cell_type"] != "code" or (not hidden and cell["id"].endswith("-hidden")):
            continue
        text = reseed(cell["text"], seed)
        if quick.is_test(cell):
            text = f"r'''\n{text}\n'''"
            assert text.count("'''") == 2, cell["id"]
        else:
            text = "None"
        parts.append(f"({cell['id']!r}, {float(cell['grading'].get('points', 0))}, {text}),\n")
    template = (quick.HERE / "pytest_template.py").read_text(encoding="utf-8")
    template = template.replace("a1_tokens", name).replace('"template"', f'"{name}"')
    before, after = template.split("str | None]] = []\n")
    return f"{before}str | None]] = [\n{''.join(parts)}]\n{after}"


def load(name: str, seed: int = 0, hidden: bool = True) -> types.ModuleType:
    """Return the converted file as a module; its `grade` takes a notebook."""
    module = types.ModuleType(f"test_{name}")
    exec(compile(convert(name, seed, hidden), f"<test_{name}>", "exec"), module.__dict__)
    return module


def reseed(text: str, seed: int) -> str:
    """Return a set-up cell with another seed; every other text as it is."""
    return re.sub(r"^SEED = 0$", f"SEED = {seed}", text, flags=re.M)


def release(notebook: dict, seed: int = 0) -> dict:
    """Return the notebook as students get it: no solution, no hidden test, no mark scheme."""
    cells = []
    for cell in notebook["cells"]:
        text = reseed("".join(cell["source"]), seed)
        text = SECRET.sub("", SOLUTION.sub(STUB[cell["cell_type"]], text))
        cells.append({**cell, "source": text.rstrip("\n").splitlines(keepends=True)})
    return {**notebook, "cells": cells}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", default=GRADED)
    parser.add_argument("--out", type=Path, default=Path())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--visible", action="store_true", help="leave out the hidden tests")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.names:
        text = convert(name, args.seed, not args.visible)
        (args.out / f"test_{name}.py").write_text(text, encoding="utf-8")
        print(args.out / f"test_{name}.py")
