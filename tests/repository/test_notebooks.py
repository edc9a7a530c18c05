"""Every notebook is whole: executed, small, described, and held against the package."""

import ast
import importlib.util
import io
import re
import sys
import tokenize
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
SPEC = importlib.util.spec_from_file_location("execute", FOLDER / "execute.py")
execute = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(execute)
ALL = [path.stem for path in sorted(FOLDER.glob("*.ipynb"))]
ONE_PAGE = "09_one_page"  # without the package, so not held against it
NAMES = [name for name in ALL if name != ONE_PAGE]
MAX_BYTES = 300_000
MAX_LINES, MAX_COLUMNS = 25, 88  # of a code cell; ruff.toml there says the same
MIN_CHECKS = 5
MIN_ALT = 40  # characters
END = ["exercises", "exercise-check", "solutions"]

every = pytest.mark.parametrize("name", ALL)
each_lesson = pytest.mark.parametrize("name", NAMES)


def read(name: str):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def text(notebook) -> str:
    return "\n\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")


def plain(source: str) -> str:
    """Python without IPython's magics, which start with ! or %."""
    return re.sub(r"^(\s*)[!%].*$", r"\1pass", source, flags=re.MULTILINE)


def names_in(tree: ast.AST) -> set[str]:
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def checks(notebook) -> int:
    """Count asserts that use a name imported from minidalle, or one computed with such a name."""
    ours, found = set(), 0
    for cell in code_cells(notebook):
        for node in ast.walk(ast.parse(plain(cell.source))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("minidalle"):
                ours |= {alias.asname or alias.name for alias in node.names}
            elif isinstance(node, ast.Assign) and names_in(node.value) & ours:
                ours |= {name for target in node.targets for name in names_in(target)}
            elif isinstance(node, ast.Assert) and names_in(node.test) & ours:
                found += 1
    return found


def test_every_notebook_has_a_number_of_its_own():
    numbers = [int(name[:2]) for name in ALL]
    assert numbers[:8] == list(range(8)) and len(set(numbers)) == len(numbers)


def test_executing_a_notebook_gives_it_the_addresses_of_the_one_place(tmp_path):
    path = tmp_path / "02_dvae.ipynb"
    elsewhere = "https://colab.research.google.com/github/someone/else/blob/old/notebooks/"
    cell = nbformat.v4.new_markdown_cell(f"[open]({elsewhere}{path.name})")
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path)
    execute.execute(path)
    found = nbformat.read(path, as_version=4).cells[0].source
    assert found == f"[open]({execute.links.colab('02_dvae')})"


@every
def test_it_is_small_and_needs_no_special_kernel(name):
    notebook = read(name)
    assert (FOLDER / f"{name}.ipynb").stat().st_size < MAX_BYTES
    assert notebook.metadata.kernelspec.name == "python3"
    assert set(notebook.metadata) == {"kernelspec", "language_info"}, "run `make notebooks`"


@every
def test_cell_ids_are_readable_and_unique(name):
    ids = [cell.id for cell in read(name).cells]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[a-z][a-z0-9-]*", i) and not re.search(r"\d{3}", i) for i in ids), ids


@every
def test_it_was_executed_from_top_to_bottom(name):
    cells = code_cells(read(name))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        for output in cell.outputs:
            expected = "raises-exception" in cell.metadata.get("tags", [])
            assert output.output_type != "error" or expected, cell.id
            assert output.get("name") != "stderr", f"{cell.id} prints to stderr: {output.text}"
            assert not any("widget" in kind for kind in output.get("data", {})), cell.id


@every
def test_every_figure_says_in_words_what_it_shows(name):
    for cell in code_cells(read(name)):
        if any("image/png" in output.get("data", {}) for output in cell.outputs):
            alt = cell.metadata.get("alt", "")
            assert len(alt) >= MIN_ALT, f'{cell.id}: write its metadata "alt"'
            assert cell.metadata["mystnb"]["image"]["alt"] == alt, "run `make notebooks`"
    for alt, file in re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", text(read(name))):
        assert "://" in file or len(alt) >= MIN_ALT, f"{file}: say in words what it shows"


@every
def test_it_opens_with_what_it_needs_gives_and_takes(name):
    cells = read(name).cells
    title = cells[0].source
    assert title.startswith(f"# {name[:2]} · ")
    for word in ("**Needs**", "**Gives**", "**Run time**", f"{name}.ipynb"):
        assert word in title, word
    assert [cell.id for cell in cells[:3]] == ["title", "setup", "map"] or name == ONE_PAGE


def test_all_notebooks_are_set_up_by_the_same_lines():
    setups = {read(name).cells[1].source.split("\n\n")[1] for name in NAMES}
    assert len(setups) == 1
    assert "torch" not in re.search(r"%pip install (.*)", setups.pop())[1], "Colab's own stays"


@each_lesson
def test_it_ends_with_three_exercises_and_their_solutions(name):
    """After them stand at most the common questions and the further reading."""
    cells = {cell.id: cell.source for cell in read(name).cells}
    end = list(cells)[list(cells).index("exercises") :]
    assert end in (END, [*END, "questions", "reading"])
    exercises, solutions = cells["exercises"], cells["solutions"]
    assert all(f"\n{n}. **" in exercises for n in (1, 2, 3))
    assert "<details>" in solutions and "</details>" in solutions


@each_lesson
def test_it_is_checked_against_the_package(name):
    assert checks(read(name)) >= MIN_CHECKS


@every
def test_code_cells_can_be_taken_in_at_a_glance(name):
    for cell in code_cells(read(name)):
        lines = cell.source.splitlines()
        most = MAX_LINES + 5 * (cell.id == "setup" or name == ONE_PAGE)  # imports may be long
        assert len(lines) <= most, f"{cell.id} has {len(lines)} lines"
        assert max(map(len, lines)) <= MAX_COLUMNS, cell.id


@every
def test_links_to_files_lead_somewhere(name):
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text(read(name))):
        assert "://" in link or (FOLDER / link).exists(), link


@each_lesson
@pytest.mark.slow
def test_the_worked_solution_passes_the_exercise_check(name):
    notebook = read(name)
    cells = {cell.id: cell for cell in notebook.cells}
    solution = re.search(r"```python\n(.*?)```", cells["solutions"].source, re.DOTALL)[1]
    check = cells["exercise-check"]
    check.source = solution + check.source[check.source.index("\n\n\n") :]
    run = {"metadata": {"path": FOLDER}}
    NotebookClient(notebook, resources=run, timeout=300, kernel_name="python3").execute()
    assert "exercise 2 is right" in check.outputs[0].text


def lines_of_code(source: str) -> int:
    """Count lines that hold code: not blank ones, comments and docstrings."""
    nothing = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    found: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in nothing | {tokenize.ENDMARKER}:
            found |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node):
            found -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return len(found)


def test_lines_of_code_are_those_that_a_reader_counts():
    assert (
        lines_of_code('# no\n\ndef f():\n    """No,\n    nor this."""\n    return (1,\n 2)\n') == 3
    )


def test_the_one_page_is_whole_in_three_hundred_lines():
    cells = code_cells(read(ONE_PAGE))
    source = "\n\n".join(cell.source for cell in cells)
    assert lines_of_code(source) <= 300
    nodes = list(ast.walk(ast.parse(source)))
    modules = {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
    modules |= {n.module for n in nodes if isinstance(n, ast.ImportFrom)}
    others = {module.split(".")[0] for module in modules} - set(sys.stdlib_module_names)
    assert others == {"matplotlib", "numpy", "torch"}, "no import from the package"
    assert "importlib" not in source and "sys.path" not in source
