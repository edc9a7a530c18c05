"""Grade a notebook in this process: the same cells and points as nbgrader, in a tenth of the time.

`python assignments/quick.py a1_tokens` shows what the tests say to each wrong solution in
`assignments/mutants/a1_tokens.py`. Use it while you write an exercise; `check_assignments.py`
runs it for all, and grades some of the same answers with nbgrader to show that the two agree.
"""

import contextlib
import inspect
import io
import json
import runpy
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

HERE = Path(__file__).parent
ASSIGNMENTS = (
    "a1_tokens", "a2_dvae", "a3_attention", "a4_sampling", "a5_clip", "a6_report",
    "a7_vqvae", "a8_debugging",
)  # fmt: skip
Answer = Callable | str  # a function to use, or the text of the cell that defines it
BLANK = "raise NotImplementedError"


def read_cells(name: str, folder: Path = HERE / "source") -> list[dict]:
    """Return the cells of an assignment's notebook; each gains the keys `text` and `grading`.

    grading holds nbgrader's metadata, empty for a cell that it does not know.
    """
    cells = json.loads((folder / name / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    for cell in cells:
        cell["text"] = "".join(cell["source"])
        cell["grading"] = cell["metadata"].get("nbgrader", {})
    return cells


def exercises(cells: list[dict]) -> list[str]:
    """Return the names of the functions that students write, in order."""
    return [c["id"] for c in cells if c["grading"].get("solution") and c["cell_type"] == "code"]


def is_test(cell: dict) -> bool:
    """Say whether running this cell decides on points."""
    return cell["cell_type"] == "code" and cell["grading"].get("grade", False)


def read_mutants(name: str) -> dict[str, dict[str, Callable]]:
    """Return exercise -> mistake -> the function with that mistake.

    A function `merge__only_first` of mutants/<name>.py is `merge` with the mistake `only_first`.
    """
    found: dict[str, dict[str, Callable]] = {}
    path = HERE / "mutants" / f"{name}.py"
    for full_name, value in (runpy.run_path(str(path)) if path.exists() else {}).items():
        exercise, divider, mistake = full_name.partition("__")
        if exercise and divider and inspect.isfunction(value):
            found.setdefault(exercise, {})[mistake] = value
    return found


def grade(
    cells: list[dict],
    answers: Mapping[str, Answer] | None = None,
    seed: int | None = None,
    only: str | None = None,
) -> tuple[dict[str, float], dict[str, str]]:
    """Run the cells in order, with the reference solutions but for `answers`.

    seed: replaces the notebook's own. only: skip the tests of all other exercises.
    Returns the points of each test, and what each failed test said. An error outside the tests
    and answers is raised: it is ours, not the student's.
    """
    space, points, said = {"__name__": "__main__"}, {}, {}
    for cell in cells:
        name, text = cell["id"], cell["text"]
        if cell["cell_type"] != "code" or (
            only and is_test(cell) and _exercise(name) not in ("setup", only)
        ):
            continue
        if name == "setup" and seed is not None:
            text = text.replace("SEED = 0", f"SEED = {seed}")
        answer = (answers or {}).get(name, text)
        if callable(answer):
            space[name] = answer
            continue
        try:
            _run(answer, name, space)
        except Exception as error:
            if name == "setup" or not (is_test(cell) or name in (answers or {})):
                raise
            said[name] = f"{type(error).__name__}: {error}".partition("\n")[0]
        if is_test(cell):
            points[name] = 0.0 if name in said else float(cell["grading"]["points"])
    return points, said


def _exercise(test: str) -> str:
    return test.partition("-")[0]


def _run(text: str, name: str, space: dict) -> None:
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        exec(compile(text, f"<cell {name}>", "exec"), space)


def survivors(name: str, seed: int | None = None, show: bool = False) -> tuple[int, list[str]]:
    """Grade every mutant of an assignment. Returns how many there are and who lost no points."""
    cells, count, alive = read_cells(name), 0, []
    for exercise, mistakes in read_mutants(name).items():
        for mistake, function in mistakes.items():
            _, said = grade(cells, {exercise: function}, seed, only=exercise)
            count += 1
            if not said:
                alive.append(f"{exercise}__{mistake}")
            if show:
                print(f"{exercise}__{mistake}")
                for test, words in (said or {"nobody": "LOSES NO POINTS"}).items():
                    print(f"    {test}: {words}")
    return count, alive


if __name__ == "__main__":
    for assignment in sys.argv[1:]:
        count, alive = survivors(assignment, show=True)
        print(f"{assignment}: {count} mutants, {len(alive)} lose no points {alive}")
