"""What the README says, held against the repository."""

import json
import re
from pathlib import Path

import pytest

from minidalle.cli import build_parser
from minidalle.config import PRESETS, get_config

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_link_inside_the_repository_leads_somewhere():
    links = [link for link in re.findall(r"\]\(([^)#]+)", TEXT) if "://" not in link]
    assert len(links) > 20
    missing = [link for link in links if not (ROOT / link).exists()]
    assert not missing


def test_every_make_target_exists():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"make ([a-z]+)\b", TEXT)) - {"is"}
    assert {"demo", "test"} <= targets
    assert [t for t in targets if not re.search(rf"^{t}:", makefile, re.M)] == []


def test_every_command_line_parses():
    found = re.findall(r"python -m minidalle ([^`\n]+)|[`/]minidalle ([^`\n]+)", TEXT)
    commands = [a or b for a, b in found if "VERB" not in (a or b)]
    assert len(commands) >= 4
    for command in commands:
        words = [w.strip('"') for w in re.findall(r'"[^"]*"|\S+', command)]
        args = build_parser().parse_args(words)
        get_config(args.preset, getattr(args, "overrides", []))


@pytest.mark.parametrize("name", PRESETS)
def test_the_presets_table_states_the_configuration(name):
    row = next(line for line in TEXT.splitlines() if re.match(rf"\| [^|]*`{name}`[^|]* \|", line))
    c = PRESETS[name]
    assert f"{c.data.image_size} px" in row
    assert f"{c.dalle.text_len}" in row and f"{c.dalle.grid}×{c.dalle.grid}" in row


@pytest.mark.parametrize("kind, label", [("seen", "seen in training"), ("held_out", "never seen")])
def test_the_results_are_those_of_the_shipped_checkpoints(kind, label):
    numbers = json.loads((ROOT / "data/checkpoints/toy/demo.json").read_text(encoding="utf-8"))
    found = numbers["kinds"][kind]
    row = next(line for line in TEXT.splitlines() if line.startswith(f"| {label} |"))
    shown = re.findall(r"([\d.]+) %", row)
    assert shown == [f"{100 * found[k]['exact']['share']:.1f}" for k in ("rebuilt", "one", "best")]
    assert f"{found['n']} captions" in TEXT
    assert f"best of {numbers['settings']['candidates']} by CLIP" in TEXT


def test_the_map_counts_the_lines_of_the_street():
    street = re.compile(r"\| \[\w+\]\(minidalle/\w+(\.py)?\) .* \d+ \|")
    rows = [line for line in TEXT.splitlines() if street.match(line)]
    assert len(rows) == 12
    for row in rows:
        cells = row.strip("| ").split(" | ")
        path = ROOT / re.search(r"\]\((minidalle/[^)]+)\)", cells[0])[1]
        files = [path] if path.is_file() else sorted(path.glob("*.py"))
        lines = sum(len(f.read_text(encoding="utf-8").splitlines()) for f in files)
        assert abs(int(cells[2]) - lines) <= 0.05 * lines + 5, f"{cells[0]}: {lines} lines"


def test_every_folder_of_the_package_is_on_the_map():
    folders = [p.name for p in (ROOT / "minidalle").iterdir() if (p / "__init__.py").is_file()]
    assert len(folders) > 4
    assert [f for f in folders if f"](minidalle/{f})" not in TEXT] == []
