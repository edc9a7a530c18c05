"""The house rules, read off the imports: no cycles, one home for each heavy library."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent / "minidalle"
FILES = {
    ".".join(("minidalle", *path.relative_to(ROOT).with_suffix("").parts)): path
    for path in sorted(ROOT.rglob("*.py"))
}
FLOORS = (  # each module imports from lower floors only
    ("config",),
    ("tokenizer", "attention", "dvae", "optim", "checkpoint", "shapes"),
    ("transformer", "data", "plot"),
    ("dalle", "clip"),
    ("train", "generate", "judge", "metrics"),
    ("stages",),
    ("demo",),
    ("__main__",),
)


def imported(path: Path, only_top: bool = False) -> set[str]:
    """The modules that a file names in import statements."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if only_top else ast.walk(tree)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):  # relative: from . import x
            package = ".".join(("minidalle", *path.relative_to(ROOT).parent.parts))
            module = f"{package}.{node.module}" if node.module else package
            found |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return found


def test_no_import_cycles():
    graph = {name: imported(path, only_top=True) & set(FILES) for name, path in FILES.items()}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail, name))
        if name not in done:
            for other in graph[name] - {name}:
                visit(other, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_modules_import_from_lower_floors():
    floor_of = {f"minidalle.{m}": i for i, names in enumerate(FLOORS) for m in names}
    for name, floor in floor_of.items():
        higher = [m for m in imported(FILES[name]) if floor_of.get(m, -1) > floor]
        assert not higher, f"{name} imports {higher}"


@pytest.mark.parametrize(
    "library, homes",
    [
        ("matplotlib", ("plot", "plot_")),
        ("PIL", ("pictures",)),
        ("torch.distributed", ("scale.",)),
        ("webdataset", ("streams",)),
        ("minidalle.scale", ("scale.", "__main__")),
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
