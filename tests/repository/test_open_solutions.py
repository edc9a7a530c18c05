"""Does a notebook give away what an assignment pays points for?

Two ways of copying are tried: the whole function of a notebook in the place of the answer, and
the lines of the solution under other names. Each was found in the tree once.
"""

import ast
import inspect
import json
import math
import re
import sys
from itertools import permutations
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "assignments"
sys.path.insert(0, str(FOLDER))
import quick  # noqa: E402

sys.path.remove(str(FOLDER))
NAMES = [n for n in quick.ASSIGNMENTS if n not in ("a6_report", "a8_debugging")]
EXERCISES = [(n, e) for n in NAMES for e in quick.exercises(quick.read_cells(n))]
LENGTH = 8  # tokens in a row that count as copied: fewer stand in any two programs
LIMIT = 0.6  # of a solution; 0.49 is the highest found, by an idiom of one line


class Anonymous(ast.NodeTransformer):
    """Give all names one name, so that a renamed copy is a copy."""

    def visit_Name(self, node):
        return ast.Name("x", node.ctx)

    def visit_arg(self, node):
        return ast.arg("x")


def signs(body):
    """The statements as a list of signs; docstrings are left out."""
    tree = Anonymous().visit(ast.parse("\n".join(map(ast.unparse, body))))
    tree.body = [n for n in tree.body if not isinstance(getattr(n, "value", None), ast.Constant)]
    text = ast.unparse(ast.fix_missing_locations(tree)).replace("dim=", "")
    return re.findall(r"\w+|[^\w\s]", text)


def pieces(program):
    return {tuple(program[i : i + LENGTH]) for i in range(len(program) - LENGTH + 1)}


def copied(program, cell):
    """The share of a program that stands in a cell, in pieces of LENGTH signs or more."""
    inside = set()
    for i in range(len(program) - LENGTH + 1):
        if tuple(program[i : i + LENGTH]) in cell:
            inside |= set(range(i, i + LENGTH))
    return len(inside) / len(program)


def notebook_cells():
    """(notebook and cell) -> syntax tree, of all code but the set-up cells."""
    found = {}
    for path in sorted((FOLDER.parent / "notebooks").glob("*.ipynb")):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == "code" and cell["id"] != "setup":
                text = "".join(cell["source"])
                found[f"{path.name[:2]} {cell['id']}"] = ast.parse(text)
    return found


CELLS = notebook_cells()
PIECES = {where: pieces(signs(tree.body)) for where, tree in CELLS.items()}


def notebook_functions():
    """(where, name) -> function, of those that need no more than torch and math."""
    found = {}
    for where, tree in CELLS.items():
        for node in tree.body:
            if isinstance(node, ast.FunctionDef):
                space = {"torch": torch, "F": torch.nn.functional, "math": math, "PAD": -1}
                node.decorator_list = []
                try:
                    exec(compile(ast.Module([node], []), where, "exec"), space)
                except NameError:  # a default that another cell made: no function to copy alone
                    continue
                found[where, node.name] = space[node.name]
    return found


FUNCTIONS = notebook_functions()


def solution(name, exercise):
    cell = next(c for c in quick.read_cells(name) if c["id"] == exercise)
    nodes = [n for n in ast.parse(cell["text"]).body if isinstance(n, ast.FunctionDef)]
    return next(n for n in nodes if n.name == exercise)


def passed(name, exercise, answers):
    """Which of the answers pass all tests of an exercise?"""
    space, tests = {"__name__": "__main__"}, []
    for cell in quick.read_cells(name):
        if cell["id"] in ("setup", exercise):
            exec(cell["text"], space)
        elif cell["id"] in (f"{exercise}-visible", f"{exercise}-hidden"):
            tests.append(compile(cell["text"], cell["id"], "exec"))
    found = []
    for label, answer in answers.items():
        try:
            for test in tests:
                exec(test, {**space, exercise: answer})
            found.append(label)
        except Exception:
            pass
    return found


def as_answers(functions, wanted):
    """Each function that takes as many arguments as `wanted` has names, in every order of them."""
    found = {}
    for label, function in functions.items():
        parameters = inspect.signature(function).parameters.values()
        n_needed = sum(p.default is p.empty for p in parameters)
        if n_needed <= len(wanted) <= len(parameters):
            for order in permutations(range(len(wanted))):
                found[*label, order] = reordered(function, wanted, order)
    return found


def reordered(function, wanted, order):
    def answer(*given, **named):
        given = [*given, *(named[name] for name in wanted[len(given) :])]
        return function(*(given[i] for i in order))

    return answer


@pytest.mark.parametrize(("name", "exercise"), EXERCISES, ids=[e for _, e in EXERCISES])
def test_no_notebook_writes_out_the_solution(name, exercise):
    mine = signs(solution(name, exercise).body)
    near = {where: copied(mine, cell) for where, cell in PIECES.items()}
    assert {where: share for where, share in near.items() if share >= LIMIT} == {}


@pytest.mark.parametrize(("name", "exercise"), EXERCISES, ids=[e for _, e in EXERCISES])
def test_no_function_of_a_notebook_is_an_answer(name, exercise):
    wanted = [a.arg for a in solution(name, exercise).args.args]
    assert passed(name, exercise, as_answers(FUNCTIONS, wanted)) == []


def test_both_find_a_copy_under_another_name():
    name, exercise = "a3_attention", "cross_mask"
    text = ast.unparse(solution(name, exercise)).replace("position", "place").replace("row", "y")
    text = text.replace("text_len: int, grid: int", "grid, text_len").replace("cross_mask", "plus")
    tree = ast.parse(text)
    assert copied(signs(solution(name, exercise).body), pieces(signs(tree.body))) > 0.9
    space = {"torch": torch, "Tensor": torch.Tensor}
    exec(compile(tree, "a cell", "exec"), space)
    answers = as_answers({("00", "plus"): space["plus"]}, ["text_len", "grid"])
    assert passed(name, exercise, answers) == [("00", "plus", (1, 0))]
