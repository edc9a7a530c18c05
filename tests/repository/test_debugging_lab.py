"""The debugging lab: one source for its notebook, and symptoms that can be told apart."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

ASSIGNMENTS = Path(__file__).parents[2] / "assignments"
sys.path[:0] = [str(ASSIGNMENTS), str(ASSIGNMENTS / "lab")]
import build  # noqa: E402
import patients  # noqa: E402
import quick  # noqa: E402
from figures import read  # noqa: E402

del sys.path[:2]
NAMES = list(patients.MISTAKES)
each = pytest.mark.parametrize("patient, mistake", list(enumerate(NAMES, start=1)))


def test_the_notebook_is_what_build_writes():
    """Its figures may differ by a version of matplotlib; everything else is written again."""
    stored = json.loads(build.OUT.read_text(encoding="utf-8"))
    cells = build.notebook(figures=False)["cells"]
    for cell in stored["cells"]:
        attached = cell.pop("attachments", {})
        assert all(len(image["image/png"]) > 5000 for image in attached.values()), cell["id"]
    assert stored["cells"] == cells, "run python assignments/lab/build.py"


@each
def test_a_mistake_is_one_line_that_runs(patient, mistake):
    right, wrong = patients.MISTAKES[mistake]
    assert patients.PROGRAM.count(right) == 1 and wrong in patients.ail(mistake)
    changed = zip(
        build.listing(patients.PROGRAM), build.listing(patients.ail(mistake)), strict=True
    )
    assert [i for i, (a, b) in enumerate(changed, 1) if a != b] == [build.place(mistake)[0]]
    assert f"{build.place(mistake)[0]:3d}  " in build.with_all_mistakes()


@each
def test_most_wrong_answers_name_the_right_line_and_repair_it_wrongly(patient, mistake):
    answers = [f() for f in quick.read_mutants("a8_debugging")[f"patient_{patient}"].values()]
    number, line = build.place(mistake)
    wrong = [a[1] for a in answers if isinstance(a, tuple) and a[0] == number]
    assert len(wrong) >= 3 and line not in wrong


def test_nearly_all_new_images_were_seen_in_training_as_the_lab_says():
    draw = patients.load(patients.PROGRAM)["draw_world"]
    seen = {image.numpy().tobytes() for image in draw(500, seed=0)[0]}
    new = [image.numpy().tobytes() in seen for image in draw(200, seed=1)[0]]
    assert 0.9 < sum(new) / 200 < 1
    text = (ASSIGNMENTS / "lab/text.md").read_text(encoding="utf-8")
    assert "500 draws from the same 128 images, so nearly all of the 200 were in it" in text


def marks(name: str) -> tuple:
    """What a student can see in a figure, in words: each mark holds in one or few patients."""
    found, healthy = read(name), read("healthy")
    end = {key: found[key][-10:].mean() for key in ("dvae", "prior", "new")}
    usual = {key: healthy[key][-10:].mean() for key in end}
    rebuilt = np.abs(found["images"] - found["rebuilt"].astype(float)).mean()
    usually = np.abs(healthy["images"] - healthy["rebuilt"].astype(float)).mean()
    groups = found["drawn"].reshape(len(patients.CAPTIONS), patients.EACH, 3, -1).astype(float)
    drawn = healthy["drawn"].reshape(groups.shape)
    colour = np.abs(groups.mean((1, 3)) - drawn.mean((1, 3))).max()  # of all samples of a caption
    return (
        "stage 1 high" if end["dvae"] > 1.5 * usual["dvae"] else "",
        "stage 1 low" if end["dvae"] < 0.7 * usual["dvae"] else "",
        "rebuilt badly" if rebuilt > 1.5 * usually else "",
        "few codes" if found["codes"] < 0.5 * healthy["codes"] else "",
        "stage 2 high" if end["prior"] > 1.4 * usual["prior"] else "",
        "stage 2 low" if end["prior"] < 0.5 * usual["prior"] else "",
        "new images high" if end["new"] > 2 * end["prior"] + 0.2 else "",
        "losses right" if np.array_equal(found["prior"], healthy["prior"]) else "",
        "samples differ" if not np.array_equal(groups, drawn) else "",
        "other colours" if colour > 40 else "",
        "all samples equal" if np.ptp(groups, axis=1).max() == 0 else "",
        "one colour" if found["drawn"].astype(float).std((2, 3)).max() < 20 else "",
    )


def test_no_two_patients_look_alike():
    found = {name: {mark for mark in marks(name) if mark} for name in ("healthy", *NAMES)}
    assert found["healthy"] == {"losses right"}
    for name, others in ((n, set(found) - {n}) for n in NAMES):
        assert found[name] not in [found[other] for other in others], (name, found[name])
