"""What the syllabus and the glossary say, held against the repository."""

import re
from pathlib import Path

import pytest

from minidalle.config import get_config

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
SYLLABUS = (ROOT / "docs/syllabus.md").read_text(encoding="utf-8")
GLOSSARY = (ROOT / "docs/glossary.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file_and_a_heading(page):
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        heads = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.M) if anchor else []
        assert not anchor or anchor in [head.lower().replace(" ", "-") for head in heads], link


def test_the_hours_of_the_assignments_are_those_of_the_teachers_guide():
    guide = (ROOT / "assignments/README.md").read_text(encoding="utf-8")
    hours = dict(re.findall(r"^\| `(\w+)` .*\| (\d to \d) \|", guide, re.M))
    six = SYLLABUS.split("## Two lectures")[0]
    rows = re.findall(r"^\| .*`(\w+)` .*\| (\d to \d) h \|$", six, re.M)
    assert dict(rows) == hours
    low, high = (sum(int(h.split(" to ")[i]) for h in hours.values()) for i in (0, 1))
    reading = sum(map(int, re.findall(r"\| (\d) h \|", six)))
    lectures = 6 * 1.5
    assert f"{low + reading + lectures:.0f} to {high + reading + lectures:.0f} hours" in six


def test_every_notebook_that_the_syllabus_shows_exists():
    shown = set(re.findall(r"`(\d\d_\w+)`", SYLLABUS))
    assert shown == {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}


@pytest.mark.parametrize("column, preset", [(2, "toy"), (3, "12b")])
def test_the_symbols_have_the_values_of_the_presets(column, preset):
    table = [line.strip("| ").split("|") for line in GLOSSARY.splitlines() if line[:2] == "| "]
    found = {row[0].strip(): row[column].strip() for row in table if len(row) == 4}
    c = get_config(preset)
    d = c.dalle
    assert found["K"] == f"{c.dvae.vocab_size:,}"
    assert found["T"] == f"{d.text_len} + {d.grid**2:,}"
    assert found["g, also n"] == f"{d.grid}"
    assert found["κ"] == f"{d.kernel}"
    assert found["D"] == f"{d.n_heads * d.head_dim:,}"
    assert found["H, d_h"] == f"{d.n_heads}, {d.head_dim}"
    assert found["L"] == f"{d.n_layers}"
    assert found["V"] == f"{d.text_vocab:,} text, {d.image_vocab:,} image"
    assert found["β"] == f"0 to {c.dvae.beta:g}"
    assert found["τ"] == f"1 to 1/{1 / c.dvae.tau:g}"
