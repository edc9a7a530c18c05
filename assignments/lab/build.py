"""Write assignment a8 from the healthy program, the mistakes and what the trainings stored.

    python assignments/lab/build.py      # writes assignments/source/a8_debugging

The student reads the program with all mistakes in it. Each patient has one of them.
"""

import base64
import hashlib
import io
import json
import zlib

from figures import draw, read
from patients import HERE, MISTAKES, PROGRAM
from PIL import Image

OUT = HERE.parent / "source/a8_debugging/a8_debugging.ipynb"
NBGRADER = {"schema_version": 3, "task": False}
BEGIN = "class DVAE"  # what stands above it is right, and not printed
TEXT = (HERE / "text.md").read_text(encoding="utf-8")


def listing(program: str) -> list[str]:
    """Return the numbered part of a program, line by line; line 1 comes first."""
    return (BEGIN + program.split(BEGIN, 1)[1]).splitlines()


def place(mistake: str) -> tuple[int, str]:
    """Return the number of the line of a mistake, and this line as it should be."""
    right, _ = MISTAKES[mistake]
    (found,) = [(i, line) for i, line in enumerate(listing(PROGRAM), start=1) if right in line]
    return found[0], found[1].strip()


def with_all_mistakes() -> str:
    """Return the numbered listing that the student reads."""
    program = PROGRAM
    for right, wrong in MISTAKES.values():
        program = program.replace(right, wrong)
    return "\n".join(f"{i:3d}  {line}".rstrip() for i, line in enumerate(listing(program), 1))


def setup() -> str:
    """Return the first code cell: clinic.py with the program packed into it."""
    world, rest = PROGRAM.split(BEGIN, 1)
    packed = base64.b64encode(zlib.compress(f"{world}\f{BEGIN}{rest}".encode(), 9)).decode()
    lines = "\n".join(packed[i : i + 92] for i in range(0, len(packed), 92))
    marks = {}
    for patient, mistake in enumerate(MISTAKES, start=1):
        words = f"patient {patient}, line {place(mistake)[0]}"
        marks[patient] = hashlib.sha256(words.encode()).hexdigest()[:8]
    text = (HERE / "clinic.py").read_text(encoding="utf-8")
    text = text.replace('"""\n"""', f'"""\n{lines}\n"""')
    digests = "".join(f'    {patient}: "{digest}",\n' for patient, digest in marks.items())
    return text.replace("MARKS = {}", f"MARKS = {{\n{digests}}}").rstrip()


def picture(name: str, title: str) -> str:
    """Return the figure of a patient as a PNG of few colours, in base64."""
    kept, small = io.BytesIO(), io.BytesIO()
    draw(title, read(name), read("healthy")).savefig(kept, dpi=80)
    few = Image.open(kept).convert("RGB").quantize(128, dither=Image.Dither.NONE)
    few.save(small, "png", optimize=True)
    return base64.b64encode(small.getvalue()).decode()


def markdown(name: str, text: str, png: str | bool = False) -> dict:
    cell = {"cell_type": "markdown", "id": name, "metadata": {}, "source": lines(text)}
    return cell | ({"attachments": {f"{name}.png": {"image/png": png}}} if png else {})


def code(name: str, text: str, points: int | None = None, solution: bool = False) -> dict:
    """Return a code cell: a locked test where it has points, else an answer, else neither."""
    grading = NBGRADER | {"cell_type": "code", "grade_id": name, "grade": points is not None}
    grading |= {"locked": not solution, "solution": solution}
    grading |= {"points": points} if points is not None else {}
    metadata = {"nbgrader": grading} if solution or points is not None else {}
    return {
        "cell_type": "code", "execution_count": None, "id": name, "metadata": metadata,
        "outputs": [], "source": lines(text),
    }  # fmt: skip


def lines(text: str) -> list[str]:
    return text.strip("\n").splitlines(keepends=True)


def exercise(patient: int, mistake: str, figures: bool) -> list[dict]:
    """Return the four cells of a patient."""
    name = f"patient_{patient}"
    number, line = place(mistake)
    text = f"## Patient {patient}\n\n![{caption(mistake)}](attachment:{name}-text.png)"
    answer = ANSWER.format(name=name, patient=patient, number=number, line=json.dumps(line))
    return [
        markdown(f"{name}-text", text, figures and picture(mistake, f"patient {patient}")),
        code(name, answer, solution=True),
        code(f"{name}-visible", VISIBLE.format(name=name, patient=patient), points=1),
        code(f"{name}-hidden", HIDDEN.format(name=name, patient=patient), points=1),
    ]


def caption(name: str) -> str:
    """Say in words what a figure shows, for those who do not see it: numbers alone."""
    found = read(name)
    ends = {key: float(found[key][-20:].mean()) for key in ("dvae", "prior", "new")}
    off = abs(found["images"].astype(float) - found["rebuilt"]).mean()
    return (
        f"Loss of stage 1 at the end {ends['dvae']:.3f}; of stage 2 {ends['prior']:.2f}, on new "
        f"images {ends['new']:.2f}; {found['codes']} of 64 codes; rebuilt images are off by "
        f"{off:.0f} of 255 on average."
    )


ANSWER = '''def {name}() -> tuple[int, str]:
    """Return the number of patient {patient}'s wrong line, and this line as it should be."""
    ### BEGIN SOLUTION
    return {number}, {line}
    ### END SOLUTION'''
VISIBLE = """got = {name}()
assert isinstance(got, tuple) and len(got) == 2, "return a number and a line, with a comma"
number, line = got
assert isinstance(number, int) and isinstance(line, str), "the number is an int, the line a text"
assert is_the_line({patient}, number), f"line {{number}} did not make patient {patient} ill"
for sign, value in signs(number, line, seed=0).items():
    message = f"the right line; but after your repair {{sign}} differ from the healthy program's"
    assert_close(value, healthy_signs(0)[sign], msg=message)"""
HIDDEN = """# Hidden tests: the repaired program with other random numbers.
### BEGIN HIDDEN TESTS
number, line = {name}()
assert is_the_line({patient}, number), f"line {{number}} did not make patient {patient} ill"
for sign, value in signs(number, line, seed=SEED + {patient}).items():
    message = f"with other random numbers {{sign}} differ from the healthy program's"
    assert_close(value, healthy_signs(SEED + {patient})[sign], msg=message)
### END HIDDEN TESTS"""


def notebook(figures: bool = True) -> dict:
    """Return the assignment, without its figures if so asked: they take seconds."""
    title, how, healthy, program, last = TEXT.split("\n\n===\n\n")
    cells = [markdown("title", title), markdown("how", how), code("setup", setup(), points=0)]
    words = healthy.replace("CAPTION", caption("healthy"))
    cells.append(markdown("healthy", words, figures and picture("healthy", "the healthy program")))
    cells.append(markdown("program", program.replace("LISTING", with_all_mistakes())))
    for patient, mistake in enumerate(MISTAKES, start=1):
        cells += exercise(patient, mistake, figures)
    cells += [markdown("last-text", last), code("last", "# train_and_show(*patient_1())")]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


if __name__ == "__main__":
    OUT.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(notebook(), indent=1, ensure_ascii=False) + "\n"
    OUT.write_text(text, encoding="utf-8")
    print(f"wrote {OUT}: {len(text) / 1e3:.0f} kB")
