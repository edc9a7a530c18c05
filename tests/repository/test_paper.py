"""docs/paper.md, the annotated paper, held against the repository."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")
LINK = r"\[[^]]+\]\(\.\./({}/[^)]+)\)"


def test_every_notebook_and_module_exists():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", TEXT) if "://" not in link]
    assert len(links) > 80
    assert [link for link in links if not (ROOT / "docs" / link).is_file()] == []
    notebooks = set(re.findall(LINK.format("notebooks"), TEXT))
    assert len(notebooks) == 8, "all lessons, from 00 to 07"


def test_every_name_is_in_the_module_before_it():
    found = re.findall(LINK.format("minidalle") + r"((?: `\w+`)+)", TEXT)
    assert len(found) > 50
    missing = []
    for file, names in found:
        source = (ROOT / file).read_text(encoding="utf-8")
        wanted = re.findall(r"`(\w+)`", names)
        missing += [f"{file}: {name}" for name in wanted if not re.search(rf"\b{name}\b", source)]
    assert missing == []


def test_every_heading_is_in_its_notebook():
    links = re.findall(LINK.format("notebooks"), TEXT)
    named = re.findall(LINK.format("notebooks") + r" \*([^*]+)\*", TEXT)
    assert len(named) == len(links) > 50, "every link to a lesson names its heading"
    missing = []
    for file, heading in named:
        cells = json.loads((ROOT / file).read_text(encoding="utf-8"))["cells"]
        text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
        if heading not in re.findall(r"^#+ (.+)$", text, re.M):
            missing.append(f"{file}: {heading}")
    assert missing == []


@pytest.mark.parametrize("what", ["equation", "figure", "table", "appendix"])
def test_every_part_of_the_paper_has_a_row(what):
    rows = re.findall(r"^\| ([^|]+) \|", TEXT, re.M)
    wanted = {
        "equation": [f"equation {n}" for n in (1, 2, 3)],
        "figure": [f"figure {n}" for n in (2, 4, 5, 9, 10, 11)],
        "table": ["table 1", "table 2"],
        "appendix": ["A.1", "A.2", "A.3", "B.1", "B.2", "C", "D", "E.1", "E.2"],
    }
    assert [part for part in wanted[what] if part not in rows] == []
