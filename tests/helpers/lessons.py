"""What a notebook defines, run without its other lines."""

import ast
import contextlib
import re
from functools import cache
from pathlib import Path

import nbformat

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"


@cache
def cells(name: str) -> dict[str, str]:
    """The code of a notebook by cell, IPython's own lines left out."""
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    code = (cell for cell in notebook.cells if cell.cell_type == "code")
    return {c.id: re.sub(r"^(\s*)[!%].*$", r"\1pass", c.source, flags=re.MULTILINE) for c in code}


def definitions(name: str, **given) -> dict:
    """Everything that a notebook imports or defines; its functions find `given` as globals."""
    kinds = ast.ClassDef | ast.FunctionDef | ast.Import | ast.ImportFrom
    found = dict(given)
    for node in (node for source in cells(name).values() for node in ast.parse(source).body):
        if isinstance(node, kinds):
            with contextlib.suppress(NameError):  # a default value that a cell computes
                exec(compile(ast.Module([node], []), name, "exec"), found)
    return found
