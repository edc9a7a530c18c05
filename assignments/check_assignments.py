"""Do the assignments grade as they should? Builds a course in a temporary folder and grades it.

For each assignment: the student release holds no solution and no hidden test; with nbgrader, the
reference solution gets every automatic point, the blank release none, and answers with mistakes
exactly the points that `quick.py` gives them; a notebook with another kernel's name, deleted
tests, copied cells or lost metadata is graded all the same; each wrong solution in `mutants/`
loses points; and pytest alone (`to_pytest.py`) gives all of these the same points. `python
assignments/check_assignments.py a1_tokens --seed 7` checks one of them, with other random inputs.
"""

import argparse
import inspect
import json
import os
import resource
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import quick
import to_pytest
from nbgrader.api import Gradebook
from nbgrader.apps import NbGraderAPI
from sqlalchemy.exc import SAWarning
from traitlets.config import PyFileConfigLoader

MARKERS = ("BEGIN SOLUTION", "HIDDEN TESTS\n", "MARK SCHEME", "### ")
TORN = "a1_tokens"  # the assignment on which damaged notebooks are tried


def main(names: list[str], seed: int) -> None:
    """Check the assignments `names` with SEED = seed; end with status 1 when one fails."""
    warnings.simplefilter("ignore", SAWarning)  # nbgrader 0.9.6 gives three, all harmless
    failures = []
    with tempfile.TemporaryDirectory(prefix="minidalle-course-") as folder:
        course = Path(folder).resolve()
        for name in names:
            copy_source(name, course, seed)
        shutil.copy(quick.HERE / "nbgrader_config.py", course)
        api = open_course(course)
        for name in names:
            found = check_assignment(api, course, name, seed)
            print(f"{name}: {'; '.join(found) or 'right'}", flush=True)
            failures += found
    total = sum(sum(resource.getrusage(who)[:2]) for who in (0, resource.RUSAGE_CHILDREN))
    print(f"{len(names)} assignments, {len(failures)} failures, {total:.0f} s of CPU time")
    sys.exit(bool(failures))


def copy_source(name: str, course: Path, seed: int) -> None:
    """Put an assignment into the course folder, with another seed."""
    text = (quick.HERE / "source" / name / f"{name}.ipynb").read_text(encoding="utf-8")
    place = course / "source" / name
    place.mkdir(parents=True)
    text = text.replace('"SEED = 0\\n"', f'"SEED = {seed}\\n"')
    (place / f"{name}.ipynb").write_text(text, encoding="utf-8")


def open_course(course: Path) -> NbGraderAPI:
    """Return nbgrader, configured as in the course folder."""
    # nbgrader starts the program `alembic`, which lies beside Python also where no venv is active.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    config = PyFileConfigLoader("nbgrader_config.py", path=str(course)).load_config()
    config.CourseDirectory.root = str(course)
    config.ExecutePreprocessor.timeout = 600  # a busy machine is no mistake of the assignment
    return NbGraderAPI(config=config)


def check_assignment(api: NbGraderAPI, course: Path, name: str, seed: int) -> list[str]:
    """Return what is wrong with one assignment, in words."""
    result = api.generate_assignment(name)
    if not result["success"]:
        return [f"nbgrader makes no release:\n{result['log']}"]
    release = json.loads((course / "release" / name / f"{name}.ipynb").read_text(encoding="utf-8"))
    cells, failures = quick.read_cells(name, course / "source"), []
    failures += check_release(cells, release)
    light = to_pytest.load(name, seed)
    failures += check_light_release(name, course, release)
    failures += check_light_mutants(name, cells, light, seed)
    for student, (notebook, want) in students(name, cells, release).items():
        got, trouble = grade(api, course, name, student, notebook)
        if got != want or trouble:
            wrong = {
                test: (got.get(test), want[test]) for test in want if got.get(test) != want[test]
            }
            failures.append(f"{student}: (got, expected) {wrong} {trouble}")
        if name in to_pytest.GRADED and light.grade(notebook)[0] != want:
            failures.append(f"{student}: pytest alone gives {light.grade(notebook)}")
    count, alive = quick.survivors(name, seed)
    print(f"{name}: {count} mutants", flush=True)
    return failures + [f"{mutant} loses no points" for mutant in alive]


def check_release(cells: list[dict], release: dict) -> list[str]:
    """Return what the release shows that it should hide."""
    shown = "\n".join("".join(cell["source"]) + "\n" for cell in release["cells"])
    leaks = [f"the release holds {marker!r}" for marker in MARKERS if marker in shown]
    hidden, open_ = set(), set()
    for cell in cells:
        for line, inside in lines(cell["text"]):
            (hidden if inside else open_).add(line)
    found = (hidden - open_) & set(shown.splitlines())
    return leaks + [f"the release holds {line!r}" for line in sorted(found) if len(line) > 30]


def check_light_release(name: str, course: Path, release: dict) -> list[str]:
    """Return where our own release differs from nbgrader's."""
    text = (course / "source" / name / f"{name}.ipynb").read_text(encoding="utf-8")
    pairs = zip(to_pytest.release(json.loads(text))["cells"], release["cells"], strict=True)
    different = [a["id"] for a, b in pairs if "".join(a["source"]) != "".join(b["source"]).rstrip()]
    return [f"our release differs from nbgrader's in {different}"] if different else []


def check_light_mutants(name: str, cells: list[dict], light, seed: int) -> list[str]:
    """Return the mutants that fail other tests with pytest alone than with `quick.py`."""
    failures = []
    for exercise, mistakes in quick.read_mutants(name).items():
        for mutant in mistakes.values():
            source = as_cell(mutant)
            _, want = quick.grade(cells, {exercise: source}, seed, only=exercise)
            cell = {"cell_type": "code", "id": exercise, "metadata": {}, "source": source}
            _, said = light.grade({"cells": [cell]})  # the tests are put back around it
            got = {test for test in said if test.startswith(f"{exercise}-")}
            if got != set(want) - {exercise}:
                failures.append(
                    f"{mutant.__name__}: pytest alone fails {got}, quick.py {set(want)}"
                )
    return failures


def lines(text: str) -> Iterator[tuple[str, bool]]:
    """Yield each line, and whether it stands between BEGIN and END."""
    inside = False
    for line in text.splitlines():
        if "### BEGIN" in line or "### END" in line:
            inside = "BEGIN" in line
        else:
            yield line, inside


def students(name: str, cells: list[dict], release: dict) -> dict[str, tuple[dict, dict]]:
    """Return student -> (the notebook handed in, the points it should get)."""
    reference = {c["id"]: c["text"] for c in cells if c["id"] in quick.exercises(cells)}
    full = {c["id"]: float(c["grading"]["points"]) for c in cells if quick.is_test(c)}
    whole = fill(release, reference)
    found = {"blank": (release, dict.fromkeys(full, 0.0))}
    if reference:  # else the release is all there is to run
        found["reference"] = (whole, full)
    mutants = quick.read_mutants(name)
    for student, which in (("mistaken", 0), ("confused", -1)) if mutants else ():
        answers = {exercise: as_cell(list(m.values())[which]) for exercise, m in mutants.items()}
        found[student] = (fill(release, answers), quick.grade(cells, answers)[0])
    if name == TORN:
        found |= {student: (tear(whole), full) for student, tear in DAMAGES.items()}
    return found


def as_cell(mutant) -> str:
    """Return the text of a mutant under the exercise's own name."""
    exercise = mutant.__name__.partition("__")[0]
    return inspect.getsource(mutant).replace(f"{mutant.__name__}(", f"{exercise}(")


def fill(release: dict, answers: dict[str, str]) -> dict:
    """Return the release with the cells of `answers` filled in."""
    notebook = json.loads(json.dumps(release))
    for cell in notebook["cells"]:
        if cell["id"] in answers:
            cell["source"] = answers[cell["id"]]
    return notebook


def rename_kernel(notebook: dict) -> dict:
    kernel = {"display_name": "My kernel", "language": "python", "name": "my-env"}
    return {**notebook, "metadata": {**notebook["metadata"], "kernelspec": kernel}}


def delete_cells(notebook: dict) -> dict:
    gone = {"setup", "best_pair-visible", "decode-hidden"}
    return {**notebook, "cells": [c for c in notebook["cells"] if c["id"] not in gone]}


def copy_cells(notebook: dict) -> dict:
    """Copy a solution and a test, as Jupyter does: the same metadata under a new id."""
    cells = []
    for cell in notebook["cells"]:
        cells.append(cell)
        if cell["id"] in ("best_pair", "shrink-visible"):
            cells.append({**cell, "id": f"{cell['id']}-copy"})
    return {**notebook, "cells": cells}


def lose_metadata(notebook: dict) -> dict:
    return {**notebook, "cells": [{**cell, "metadata": {}} for cell in notebook["cells"]]}


DAMAGES = {
    "other-kernel": rename_kernel,
    "deleted-cells": delete_cells,
    "copied-cells": copy_cells,
    "lost-metadata": lose_metadata,
}


def grade(
    api: NbGraderAPI, course: Path, name: str, student: str, notebook: dict
) -> tuple[dict[str, float], str]:
    """Hand in a notebook and autograde it. Returns the points of each test, and trouble."""
    place = course / "submitted" / student / name
    place.mkdir(parents=True)
    (place / f"{name}.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    result = api.autograde(name, student)
    if not result["success"]:
        return {}, f"nbgrader fails:\n{result['log']}"
    with Gradebook(f"sqlite:///{course}/gradebook.db", "minidalle") as gradebook:
        handed_in = gradebook.find_submission_notebook(name, name, student)
        points = {g.name: g.auto_score for g in handed_in.grades if g.cell.cell_type == "code"}
    return points, errors_outside_tests(course / "autograded" / student / name / f"{name}.ipynb")


def errors_outside_tests(path: Path) -> str:
    """Return the errors of cells that are neither tests nor answers: those would be ours."""
    found = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        grading = cell["metadata"].get("nbgrader", {})
        for output in cell.get("outputs", []):
            is_ours = not (grading.get("solution") or grading.get("points"))
            if is_ours and output["output_type"] == "error":
                found.append(f"{cell.get('id')}: {output['ename']}: {output['evalue']}")
    return "; ".join(found)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", default=list(quick.ASSIGNMENTS))
    parser.add_argument("--seed", type=int, default=0)
    main(**vars(parser.parse_args()))
