"""Does pytest alone give the points that nbgrader gives, from the same notebook?

nbgrader itself is compared in `make assignments`; here it is `quick.py`, which it agrees with.
"""

import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "assignments"
sys.path.insert(0, str(FOLDER))  # as for whoever runs `python assignments/new_class.py`
import new_class  # noqa: E402
import quick  # noqa: E402
import to_pytest  # noqa: E402

sys.path.remove(str(FOLDER))
graded = pytest.mark.parametrize(
    "name",
    [  # the debugging lab trains models; `make assignments` grades it in both ways
        pytest.param(name, marks=[pytest.mark.slow] if name == "a8_debugging" else [])
        for name in to_pytest.GRADED
    ],
)


def solved(name: str) -> dict:
    return json.loads((FOLDER / "source" / name / f"{name}.ipynb").read_text(encoding="utf-8"))


def answer(notebook: dict, texts: dict[str, str]) -> dict:
    cells = [{**c, "source": texts.get(c["id"], c["source"])} for c in notebook["cells"]]
    return {**notebook, "cells": cells}


@graded
def test_the_reference_gets_every_point_and_the_blank_none(name):
    light = to_pytest.load(name, seed=7)
    points, said = light.grade(solved(name))
    assert said == {} and sum(points.values()) in (16, 20)
    points, _ = light.grade(to_pytest.release(solved(name)))
    assert sum(points.values()) == 0


@graded
def test_mistakes_cost_what_they_cost_elsewhere(name):
    mutants = {e: list(m.items())[-1] for e, m in quick.read_mutants(name).items()}
    texts = {
        exercise: inspect.getsource(mutant).replace(f"{exercise}__{mistake}(", f"{exercise}(")
        for exercise, (mistake, mutant) in mutants.items()
    }
    want, _ = quick.grade(quick.read_cells(name), texts)
    light = to_pytest.load(name)
    assert light.grade(answer(solved(name), texts))[0] == want
    assert 0 <= sum(want.values()) < sum(light.TESTS.values())


def test_deleted_copied_and_edited_tests_are_put_right():
    whole = solved("a1_tokens")
    cells = []
    for cell in whole["cells"]:
        if cell["id"] in ("setup", "shrink-visible", "decode-hidden"):
            continue
        if cell["id"] == "pad_batch-visible":
            cell = {**cell, "source": "assert False"}
        cells.append(cell)
        if cell["id"] in ("best_pair", "fewest_tokens-visible"):
            cells.append({**cell, "id": f"{cell['id']}-copy"})  # as Jupyter copies: same metadata
    lost = [{**cell, "metadata": {}} for cell in whole["cells"]]
    for torn in (cells, lost):
        assert to_pytest.load("a1_tokens").grade({**whole, "cells": torn})[1] == {}


def test_an_answer_that_never_ends_leaves_or_cannot_be_read_costs_its_own_points():
    light = to_pytest.load("a5_clip")
    light.LIMIT = 0.2
    texts = {
        "normalise": "def normalise(x):\n    while True:\n        pass",
        "soft_targets": "import sys\nsys.exit()",
        "mean_average_precision": "def mean_average_precision(",
    }
    _, said = light.grade(answer(solved("a5_clip"), texts))
    assert {test.partition("-")[0] for test in said} == set(texts)


def test_a_notebook_of_another_assignment_is_refused():
    with pytest.raises(ValueError, match="no cell of a5_clip"):
        to_pytest.load("a5_clip").grade({"cells": [{"cell_type": "code", "metadata": {}}]})


@pytest.mark.slow
def test_a_class_of_its_own_numbers_shows_students_a_score_and_no_solution(tmp_path):
    folder = tmp_path / "class-7"
    new_class.make_class(folder, seed=7)
    for name in quick.ASSIGNMENTS:
        given = (folder / f"students/{name}/{name}.ipynb").read_text(encoding="utf-8")
        kept = (folder / f"source/{name}/{name}.ipynb").read_text(encoding="utf-8")
        assert '"SEED = 7\\n"' in given and '"SEED = 7\\n"' in kept
        assert "### " not in given.replace("#### ", "") and "### BEGIN" in kept
    tests = folder / "students/a5_clip/test_a5_clip.py"
    assert "HIDDEN" not in tests.read_text(encoding="utf-8")
    run = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", tests.name]
    (tests.parent / "a5_clip.ipynb").write_text(json.dumps(solved("a5_clip")), encoding="utf-8")
    done = subprocess.run(run, cwd=tests.parent, capture_output=True, text=True)
    said = done.stdout + done.stderr
    assert "5 passed" in said and "a5_clip.ipynb: 5 of 5 points" in said, said
