"""What the syllabus, the glossary and the links say, held against the repository."""

import importlib.util
import json
import re
import tomllib
from pathlib import Path

import pytest

from minidalle.config import get_config

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
SYLLABUS = (ROOT / "docs/syllabus.md").read_text(encoding="utf-8")
GLOSSARY = (ROOT / "docs/glossary.md").read_text(encoding="utf-8")
SPEC = importlib.util.spec_from_file_location("links", ROOT / "docs" / "links.py")
links = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(links)


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


def test_relink_changes_our_own_addresses_alone():
    source = (
        "[badge](https://colab.research.google.com/github/a/b/blob/old/notebooks/02_dvae.ipynb)\n"
        "    !git clone -q --depth 1 https://github.com/a/b\n    %cd -q b/notebooks\n"
        "after [the authors](https://github.com/openai/DALL-E/issues/1)"
    )
    done = links.relink(source)
    assert f"({links.colab('02_dvae')})" in done
    assert f"--depth 1 {links.REPOSITORY}\n    %cd -q {links.NAME}/notebooks\n" in done
    assert done.endswith("(https://github.com/openai/DALL-E/issues/1)")
    assert links.relink(done) == done


def test_every_notebook_holds_the_addresses_of_the_one_place():
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        source = "\n".join("".join(cell["source"]) for cell in cells)
        assert links.colab(path.stem) in source, path.name
        assert links.relink(source) == source, f"{path.name}: run `make notebooks`"


def test_citation_changelog_and_package_speak_of_the_same_version_and_place():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"\nversion: {project['version']}\n" in citation
    assert re.search(r"^## (\S+)", changes, re.M).group(1) == project["version"]
    assert f"\nrepository-code: {links.REPOSITORY}\n" in citation


def test_the_wheel_holds_every_folder_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    folders = [path.parent for path in (ROOT / "minidalle").rglob("__init__.py")]
    names = [".".join(folder.relative_to(ROOT).parts) for folder in folders]
    assert project["tool"]["setuptools"]["packages"] == sorted([*names, "minidalle.shipped"])


def test_the_table_of_versions_has_a_row_for_every_python_that_the_weekly_trial_tries():
    page = (ROOT / "docs/works-with.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (3\.\d+)(?:\.\d+ \|.*\| 20\d\d-\d\d-\d\d| \|.* –) \|$", page, re.M)
    workflow = (ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8")
    tried = re.search(r"try_release\.py --write (.+)", workflow)[1]
    assert rows == re.findall(r"python(3\.\d+)", tried)
