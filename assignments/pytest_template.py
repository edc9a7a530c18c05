"""Grade a student's notebook with pytest alone; the same tests and points as nbgrader's.

    NOTEBOOK=ada/a1_tokens.ipynb python -m pytest test_a1_tokens.py

Without NOTEBOOK it is the notebook of that name in the working folder. `assignments/to_pytest.py`
wrote the tests below from the assignment's notebook: change that one.
"""

import contextlib
import io
import json
import os
import re
import signal
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

LIMIT = 120  # seconds a cell, as in nbgrader_config.py
NAME = "template"
# Each code cell of the assignment, in order: id, points, text (None where the student writes).
CELLS: list[tuple[str, float, str | None]] = []
TESTS = {name: points for name, points, text in CELLS if text is not None}


def grade(notebook: dict) -> tuple[dict[str, float], dict[str, str]]:
    """Run the cells of a student's notebook in one namespace, with the tests as we wrote them.

    Returns test -> points, and test -> what it said for those that failed.
    """
    space, said = {"__name__": "__main__"}, {}
    for name, text in restore(notebook):
        words = run(text, name, space)
        if words and name in TESTS:
            said[name] = words
    return {test: 0.0 if test in said else points for test, points in TESTS.items()}, said


def restore(notebook: dict) -> list[tuple[str, str]]:
    """Return (id, text) of the code cells; of a copied cell only the last keeps its id.

    Tests get their own text back; one that was deleted is put behind the cell before it.
    Raises ValueError when no cell is left of the assignment.
    """
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    names = [cell["metadata"].get("nbgrader", {}).get("grade_id", cell.get("id")) for cell in code]
    if not {name for name, _, _ in CELLS} & set(names):
        raise ValueError(f"no cell of {NAME} in this notebook: paste the answers into a new copy")
    names = ["" if name in names[i + 1 :] else name for i, name in enumerate(names)]
    found = [(n, "".join(cell["source"])) for n, cell in zip(names, code, strict=True)]
    place = 0  # behind the last cell of the assignment that we have met
    for name, _, text in CELLS:
        at = next((i for i, (other, _) in enumerate(found) if other == name), None)
        if at is None and text is not None:
            found.insert(place, (name, text))
            place += 1
        elif at is not None:
            found[at] = (name, found[at][1] if text is None else text)
            place = at + 1
    return found


def run(text: str, name: str, space: dict) -> str:
    """Run one cell. Returns what went wrong in one line, or nothing."""
    text = re.sub(
        r"^(\s*)[!%].*$", r"\1pass", text, flags=re.MULTILINE
    )  # only notebooks know these
    errors = io.StringIO()
    try:
        with (
            warnings.catch_warnings(),
            at_most(LIMIT),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(errors),
        ):
            exec(compile(text, f"<cell {name}>", "exec"), space)
    except (Exception, SystemExit) as error:
        return f"{type(error).__name__}: {error}".partition("\n")[0]
    return f"it prints an error: {errors.getvalue()[:80]}" if errors.getvalue() else ""


@contextlib.contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Stop a cell that never ends, where the system has an alarm (Windows has none)."""
    if not hasattr(signal, "SIGALRM"):
        yield
        return

    def stop(*_):
        raise TimeoutError(f"stopped after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def said(request) -> Iterator[dict[str, str]]:
    path = Path(os.environ.get("NOTEBOOK", f"{NAME}.ipynb"))
    points, words = grade(json.loads(path.read_text(encoding="utf-8")))
    yield words
    capture = request.config.pluginmanager.get_plugin("capturemanager")
    with capture.global_and_fixture_disabled():
        print(f"\n{path}: {sum(points.values()):g} of {sum(TESTS.values()):g} points")


@pytest.mark.parametrize("test", [test for test, points in TESTS.items() if points])
def test_cell(said, test):
    if test in said:
        pytest.fail(f"{test} ({TESTS[test]:g} points): {said[test]}", pytrace=False)
