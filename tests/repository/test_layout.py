"""The rules of the house, read off the imports of every module, those inside functions too."""

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2] / "minidalle"
FILES = {
    ".".join(("minidalle", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(
        ".__init__"
    ): path
    for path in sorted(ROOT.rglob("*.py"))
}

# The street from top to bottom: a file imports files above it in this list, never below.
STREET = (
    "config", "tokenizer", "attention.masks", "attention.dense", "attention",
    "dvae", "clip",
    "transformer", "cache", "dalle", "train", "models", "generate", "stages",
)  # fmt: skip
MODELS = {"tokenizer", "attention", "dvae", "clip", "transformer", "dalle", "cache"}
# What each wing may import beside itself, by first name; the street is "street" for short.
MAY_IMPORT = {
    "files": set(),
    "fields": set(),
    "presets": set(),  # data
    "data": {"config", "files", "tokenizer"},
    "training": {"config", "files", "dvae"},
    "evaluation": {"street", "data", "plot", "files", "training"},
    "codebooks": {"config", "dvae"},
    "priors": {"config", "dvae", "tokenizer", "transformer", "attention"},
    "published": {"config", "files", "tokenizer", "attention", "dvae", "clip", "cache"}
    | {"codebooks", "priors"},
    "plot": {"files"},
    "notebook": {"street"},
}
NEVER_ON_THE_STREET = {"scale", "published", "codebooks", "priors"}


@cache
def nodes(path: Path) -> list[ast.AST]:
    """All import statements of a file, wherever they stand."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [n for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom)]


def imported(path: Path) -> set[str]:
    """Every module and name that a file asks for."""
    found = set()
    for node in nodes(path):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        else:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def rooms(path: Path) -> set[str]:
    """The modules of the package that a file imports."""
    found = set()
    for node in nodes(path):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names} & set(FILES)
            continue
        parts = {f"{node.module}.{alias.name}" for alias in node.names} & set(FILES)
        only_parts = len(parts) == len(node.names)
        found |= parts | (set() if only_parts else {node.module} & set(FILES))
    return found


def first(name: str) -> str:
    """'minidalle.data.shapes' -> 'data'."""
    return name.removeprefix("minidalle.").split(".")[0]


def on_street(name: str) -> bool:
    return first(name) in {s.split(".")[0] for s in STREET}


def test_every_import_is_absolute():
    relative = [str(p) for p in FILES.values() for n in nodes(p) if getattr(n, "level", 0)]
    assert not relative


def test_no_import_goes_in_a_circle():
    graph = {name: rooms(path) - {name} for name, path in FILES.items()}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail, name))
        if name not in done:
            for other in graph[name]:
                visit(other, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_the_street_is_read_from_top_to_bottom():
    place = {f"minidalle.{name}": i for i, name in enumerate(STREET)}
    for name, here in place.items():
        below = [other for other in rooms(FILES[name]) if place.get(other, -1) > here]
        assert not below, f"{name} imports {below}"


@pytest.mark.parametrize("name", FILES)
def test_a_wing_imports_what_it_may(name):
    wing = first(name)
    if wing not in MAY_IMPORT:
        return
    allowed = MAY_IMPORT[wing] | {wing}
    wrong = [
        other
        for other in rooms(FILES[name])
        if first(other) not in allowed and not ("street" in allowed and on_street(other))
    ]
    assert not wrong


def test_the_street_knows_no_wing_that_it_need_not():
    for name, path in FILES.items():
        if on_street(name) and first(name) not in ("models", "generate"):
            assert not {first(o) for o in rooms(path)} & NEVER_ON_THE_STREET, name


@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_model_knows_no_file_optimiser_or_process(name):
    wings = {"files", "training", "data", "scale", "evaluation", "plot"}
    found = imported(FILES[f"minidalle.{name}"])
    wings |= {"os", "pathlib", "logging", "torch.optim", "torch.distributed"}
    its_own = {"files", "pathlib"} if name == "tokenizer" else set()  # one JSON file in and out
    assert not {first(o) for o in found} & wings - its_own and not found & wings - its_own


@pytest.mark.parametrize(
    "library, homes",
    [
        ("matplotlib", ("plot",)),
        ("PIL", ("data.images",)),
        ("torch.distributed", ("scale.",)),
        ("webdataset", ("data.streams",)),
        ("pooch", ("files",)),
        ("minidalle.scale", ("scale.", "cli")),
    ],
)
def test_a_heavy_library_has_one_home(library, homes):
    users = [
        name.removeprefix("minidalle.")
        for name, path in FILES.items()
        if any(m == library or m.startswith(library + ".") for m in imported(path))
    ]
    assert users, f"nobody uses {library}"
    assert [u for u in users if not u.startswith(homes)] == []


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def test_files_street_and_package_stay_small():
    sizes = {name: lines(path) for name, path in FILES.items()}
    assert {n: s for n, s in sizes.items() if s > 400} == {}
    assert len(list(ROOT.glob("*.py"))) <= 18
    on = ["minidalle." + name for name in STREET if f"minidalle.{name}" in sizes]
    assert sum(sizes[n] for n in on) <= 2604
    assert sum(sizes.values()) <= 14_172
