"""Make a class of its own numbers: `python assignments/new_class.py --seed 7`.

Writes the folder class-7 (or --out):

    students/aN/aN.ipynb         give these to your students, with
    students/aN/test_aN.py       the visible tests: `python -m pytest` says a student's own score
    source/aN/aN.ipynb           the solutions, for nbgrader; keep these to yourself
    grading/test_aN.py           all tests: NOTEBOOK=….ipynb python -m pytest grading/test_aN.py
    nbgrader_config.py           for those who grade with nbgrader
"""

import argparse
import json
import shutil
from pathlib import Path

import quick
import to_pytest


def make_class(out: Path, seed: int) -> None:
    """Write the folder of a class. Raises FileExistsError where there is one already."""
    out.mkdir(parents=True)
    shutil.copy(quick.HERE / "nbgrader_config.py", out)
    for name in quick.ASSIGNMENTS:
        text = (quick.HERE / "source" / name / f"{name}.ipynb").read_text(encoding="utf-8")
        notebook = json.loads(text)
        for cell in notebook["cells"]:
            seeded = to_pytest.reseed("".join(cell["source"]), seed)
            cell["source"] = seeded.splitlines(keepends=True)
        write(out / "source" / name / f"{name}.ipynb", notebook)
        write(out / "students" / name / f"{name}.ipynb", to_pytest.release(notebook))
    for name in to_pytest.GRADED:
        write(out / "students" / name / f"test_{name}.py", to_pytest.convert(name, seed, False))
        write(out / "grading" / f"test_{name}.py", to_pytest.convert(name, seed))


def write(path: Path, content: dict | str) -> None:
    """Write a notebook, or a text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, dict):
        content = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    path.write_text(content, encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, required=True, help="another one every year")
    parser.add_argument("--out", type=Path, help="the folder; class-SEED without it")
    args = parser.parse_args()
    folder = args.out or Path(f"class-{args.seed}")
    if folder.exists():
        parser.error(f"{folder} is there already: say --out, or delete it")
    make_class(folder, args.seed)
    print(
        f"wrote {folder}; try the seed: python assignments/check_assignments.py --seed {args.seed}"
    )
