"""Are the assignments well formed, do the reference solutions pass, and does every mistake cost?

The whole check, with nbgrader, is `make assignments`.
"""

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("quick", ROOT / "assignments" / "quick.py")
quick = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(quick)
GRADED = [name for name in quick.ASSIGNMENTS if name != "a6_report"]
every = pytest.mark.parametrize("name", quick.ASSIGNMENTS)
graded = pytest.mark.parametrize("name", GRADED)
# Those of the debugging lab train models; `make assignments` runs them at every change.
executed = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name == "a8_debugging" else [])
        for name in GRADED
    ],
)


def point_cells(name):
    """The test cells that give points, by id, as syntax trees."""
    cells = [c for c in quick.read_cells(name) if quick.is_test(c) and c["grading"]["points"]]
    return {c["id"]: ast.parse(c["text"]) for c in cells}


def test_every_folder_is_listed():
    found = sorted(path.name for path in (ROOT / "assignments" / "source").iterdir())
    assert found == sorted(quick.ASSIGNMENTS)


@every
def test_points_add_up_to_20_and_the_guides_say_so(name):
    cells = quick.read_cells(name)
    by_tests = sum(c["grading"]["points"] for c in cells if quick.is_test(c))
    total = sum(c["grading"].get("points", 0) for c in cells)
    assert total == 20
    for guide in ("README.md", "STUDENT.md"):
        text = (ROOT / "assignments" / guide).read_text(encoding="utf-8")
        row = next(line for line in text.splitlines() if line.startswith(f"| `{name}`"))
        assert row.endswith(f"| {by_tests} | {20 - by_tests} |"), guide
        hours = re.search(r"\| (\d to \d) \|", row).group(1)
        assert f"| time | {hours} hours for you" in cells[0]["text"], guide


@graded
def test_the_guide_names_every_exercise(name):
    text = (ROOT / "assignments" / "README.md").read_text(encoding="utf-8")
    row = next(line for line in text.splitlines() if line.startswith(f"| `{name}`"))
    assert re.findall(r"`(\w+)`", row)[1:] == quick.exercises(quick.read_cells(name))


@every
def test_ids_are_readable_unique_and_the_grade_ids(name):
    cells = quick.read_cells(name)
    ids = [c["id"] for c in cells]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[a-z0-9_]+(-[a-z]+)*", i) for i in ids), ids
    for cell in cells:
        assert cell["grading"].get("grade_id", cell["id"]) == cell["id"]


@every
def test_the_first_code_cell_is_the_setup_that_grading_restores(name):
    first = next(c for c in quick.read_cells(name) if c["cell_type"] == "code")
    assert first["id"] == "setup"
    assert first["grading"]["locked"] and first["grading"]["points"] == 0
    assert re.findall("^SEED = 0$", first["text"], re.M)


@every
def test_notebooks_are_committed_without_outputs(name):
    for cell in quick.read_cells(name):
        assert not cell.get("outputs") and cell.get("execution_count") is None
        assert set(cell["metadata"]) <= {"nbgrader"}


@every
def test_notebooks_name_the_kernel_that_everybody_has(name):
    path = ROOT / "assignments" / "source" / name / f"{name}.ipynb"
    assert (
        json.loads(path.read_text(encoding="utf-8"))["metadata"]["kernelspec"]["name"] == "python3"
    )


@graded
def test_each_exercise_has_text_answer_visible_and_hidden_tests_in_this_order(name):
    cells = quick.read_cells(name)
    ids = [c["id"] for c in cells]
    for exercise in quick.exercises(cells):
        at = ids.index(exercise)
        around = [f"{exercise}-text", exercise, f"{exercise}-visible", f"{exercise}-hidden"]
        assert ids[at - 1 : at + 3] == around


@graded
def test_markers_stand_where_they_belong(name):
    for cell in quick.read_cells(name):
        solution = cell["text"].count("### BEGIN SOLUTION"), cell["text"].count("### END SOLUTION")
        hidden = cell["text"].count("BEGIN HIDDEN TESTS"), cell["text"].count("END HIDDEN TESTS")
        assert solution == ((1, 1) if cell["grading"].get("solution") else (0, 0)), cell["id"]
        assert hidden == ((1, 1) if cell["id"].endswith("-hidden") else (0, 0)), cell["id"]
        if hidden[0]:
            first, second, *_, last = cell["text"].splitlines()
            assert first.startswith("# Hidden tests: ")
            assert (second, last) == ("### BEGIN HIDDEN TESTS", "### END HIDDEN TESTS")


@graded
def test_every_assert_has_a_message(name):
    for where, tree in point_cells(name).items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Assert):
                assert node.msg, f"{where}: {ast.unparse(node)}"
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "assert_close":
                assert any(k.arg == "msg" for k in node.keywords), f"{where}: {ast.unparse(node)}"


@graded
def test_every_exercise_is_tested_for_its_type(name):
    for where, tree in point_cells(name).items():
        if where.endswith("-visible"):
            code = ast.unparse(tree)
            assert "isinstance(" in code or "type(" in code, where


@graded
def test_no_test_cell_ends_in_a_value(name):
    """nbgrader reads a displayed number as points, and a true assertion says nothing."""
    for where, tree in point_cells(name).items():
        last = tree.body[-1]
        assert not isinstance(last, ast.Expr) or "assert_close" in ast.unparse(last), where


@graded
def test_random_inputs_come_from_the_seed(name):
    for where, tree in point_cells(name).items():
        for node in ast.walk(tree):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if called in ("torch.randn", "torch.rand", "torch.randint", "torch.randperm"):
                assert any(k.arg == "generator" for k in node.keywords), (
                    f"{where}: {ast.unparse(node)}"
                )
            if called.endswith("manual_seed") or called == "random.Random":
                assert re.search("SEED|seed", ast.unparse(node.args[0])), (
                    f"{where}: {ast.unparse(node)}"
                )


@graded
def test_no_test_calls_another_exercise(name):
    exercises = set(quick.exercises(quick.read_cells(name)))
    for where, tree in point_cells(name).items():
        called = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)} & exercises
        assert called == {where.partition("-")[0]}, where


@executed
def test_each_answer_alone_gets_its_own_points(name):
    cells = quick.read_cells(name)
    exercises = quick.exercises(cells)
    for own in exercises:
        points, _ = quick.grade(cells, {e: quick.BLANK for e in exercises if e != own})
        assert {test for test, p in points.items() if p} == {f"{own}-visible", f"{own}-hidden"}


@executed
@pytest.mark.parametrize("seed", [0, *(pytest.param(s, marks=pytest.mark.slow) for s in (1, 2))])
def test_the_reference_gets_every_point(name, seed):
    _, said = quick.grade(quick.read_cells(name), seed=seed)
    assert said == {}


@executed
def test_the_blank_release_gets_nothing(name):
    cells = quick.read_cells(name)
    points, _ = quick.grade(cells, dict.fromkeys(quick.exercises(cells), quick.BLANK))
    assert sum(points.values()) == 0


@graded
def test_every_exercise_has_five_mutants(name):
    mutants = quick.read_mutants(name)
    assert list(mutants) == quick.exercises(quick.read_cells(name))
    assert {e: len(m) for e, m in mutants.items() if len(m) < 5} == {}


@pytest.mark.slow  # `make assignments` does it too
@graded
def test_each_mutant_loses_points(name):
    assert quick.survivors(name)[1] == []


@graded
def test_mutants_use_only_what_the_notebook_imports(name):
    """So that a mutant can be pasted into the notebook, as a student would write it."""
    setup = next(c for c in quick.read_cells(name) if c["id"] == "setup")["text"]
    path = ROOT / "assignments" / "mutants" / f"{name}.py"
    body = ast.parse(path.read_text(encoding="utf-8")).body[1:]  # after the docstring
    kinds = (ast.Import, ast.ImportFrom)
    assert all(isinstance(node, (*kinds, ast.FunctionDef)) for node in body)
    known = imported(ast.parse(setup).body)
    assert imported(body) <= known


def imported(body):
    nodes = [n for n in body if isinstance(n, ast.Import | ast.ImportFrom)]
    return {alias.asname or alias.name for node in nodes for alias in node.names}


def test_a_mutant_that_is_right_is_found(monkeypatch):
    cells = quick.read_cells("a5_clip")
    space = {}
    for cell in cells:
        if cell["id"] in ("setup", "normalise"):
            exec(cell["text"], space)
    monkeypatch.setattr(
        quick, "read_mutants", lambda name: {"normalise": {"none": space["normalise"]}}
    )
    assert quick.survivors("a5_clip") == (1, ["normalise__none"])


@pytest.mark.slow
def test_the_commands_of_the_guide_lead_to_grades_and_feedback(tmp_path):
    guide = (ROOT / "assignments" / "README.md").read_text(encoding="utf-8")
    section = guide.split("## From an empty folder to grades.csv")[1]
    commands = re.search("```bash\n(.*?)```", section, re.S).group(1)
    here = Path(sys.executable).parent
    environment = {**os.environ, "MINIDALLE": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment["PATH"] = f"{here}{os.pathsep}{os.environ['PATH']}"
    run = ["bash", "-e", "-c", commands]
    done = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    table = (tmp_path / "course" / "grades.csv").read_text(encoding="utf-8").splitlines()
    header, ada = (line.split(",") for line in table)
    grades = dict(zip(header, ada, strict=True))
    assert (grades["student_id"], float(grades["score"])) == ("ada", 0.0)
    assert float(grades["max_score"]) == 20.0
    assert list((tmp_path / "course" / "feedback" / "ada" / "a1_tokens").glob("*.html"))
