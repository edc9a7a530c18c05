"""Break the street in one place at a time, and see whether a fast test turns red.

    OMP_NUM_THREADS=1 python tests/attack/mutate.py mutants.jsonl --n 240 --seconds 540
    python tests/attack/mutate.py mutants.jsonl --show
    OMP_NUM_THREADS=1 python tests/attack/mutate.py mutants.jsonl --again

The first call goes on where an earlier one stopped; the second prints the share caught and the
survivors; the third tries the survivors again, after tests were written. A mutant is one small
change: a comparison or a sign turned round, a number off by one, a line, an argument or a check
dropped, another result. Which ones are made follows from --seed.
This process imports torch once; for every mutant it forks a child whose imports see the changed
text, and which runs those tests of that file that reach the statement. `equivalent.txt` beside this
script holds the survivors that no test can tell from the original, with their reasons.
"""

import argparse
import ast
import copy
import hashlib
import importlib
import importlib.machinery
import importlib.util
import json
import os
import random
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EQUIVALENT = Path(__file__).with_name("equivalent.txt")
LIMIT = 150  # seconds; a mutant that takes longer never ends
# The tests that must notice a mistake in a file.
TESTS = {
    "presets": "config training/optim",
    "config": "config properties training/optim priors/mini models clip attack/calls",
    "tokenizer": "tokenizer attack/calls", "attention/masks": "attention attack/calls",
    "attention/dense": "attention dalle stages",
    "attention/__init__": "attention dalle attack/calls",
    "dvae": "dvae attack/calls", "clip": "clip stages generate data/lookalikes attack/calls",
    "transformer": "transformer dalle attack/calls", "cache": "dalle generate",
    "dalle": "dalle generate attack/calls", "models": "models stages cli",
    "train": "train training/checkpoints training/optim stages attack/calls",
    "generate": "generate data/image_prompts cli attack/calls", "stages": "stages models cli",
}  # fmt: skip
COMPARE = {
    ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt), ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,), ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,),
}  # fmt: skip
ARITHMETIC = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv, ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr,
}  # fmt: skip
NAMES = {
    "sum": "mean", "mean": "sum", "argmax": "argmin", "any": "all", "all": "any", "min": "max",
    "max": "min", "log_softmax": "softmax", "sorted": "list",
}  # fmt: skip


def changes(node: ast.AST) -> Iterator[tuple[ast.AST, ast.AST]]:
    """Yield (what to replace, by what) for one node of a syntax tree."""

    def alter(old: ast.AST, **fields) -> ast.AST:
        new = copy.copy(old)
        for name, value in fields.items():
            setattr(new, name, value)
        return new

    match node:
        case ast.Compare():
            for i, op in enumerate(node.ops):
                for other in COMPARE[type(op)]:
                    yield node, alter(node, ops=[*node.ops[:i], other(), *node.ops[i + 1 :]])
        case ast.BinOp() if type(node.op) in ARITHMETIC:
            yield node, alter(node, op=ARITHMETIC[type(node.op)]())
        case ast.UnaryOp():
            yield node, node.operand
        case ast.BoolOp():
            yield node, alter(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And())
        case ast.IfExp():
            yield node, alter(node, body=node.orelse, orelse=node.body)
        case ast.Constant(value=bool()):
            yield node, ast.Constant(not node.value)
        case ast.Constant(value=int()):
            yield from ((node, ast.Constant(node.value + by)) for by in (1, -1))
        case ast.Constant(value=float()):
            yield node, ast.Constant(node.value * 2 or 1.0)
        case ast.Call():
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if name in NAMES:
                field = "attr" if isinstance(node.func, ast.Attribute) else "id"
                yield node, alter(node, func=alter(node.func, **{field: NAMES[name]}))
            for i in range(len(node.keywords)):
                yield node, alter(node, keywords=node.keywords[:i] + node.keywords[i + 1 :])
        case ast.If() | ast.While():
            yield node.test, ast.UnaryOp(ast.Not(), node.test)
        case ast.Return(value=ast.AST()):
            yield node, ast.Return(ast.Constant(None))
        case ast.Raise() | ast.AugAssign() | ast.Expr(value=ast.Call()):
            yield node, ast.Pass()
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
            yield node, ast.Pass()


def mutants(name: str) -> list[dict]:
    """Return every mutant of a file of the street, with the changed text of the whole file."""
    text = (ROOT / "minidalle" / f"{name}.py").read_bytes()
    starts, found = [0, *(i + 1 for i, byte in enumerate(text) if byte == 10)], []

    def visit(node: ast.AST, span: tuple[int, int]) -> None:
        if isinstance(node, ast.stmt):  # of those with a body the head
            inner = getattr(node, "body", None)
            span = node.lineno, inner[0].lineno - 1 if inner else node.end_lineno
        for old, new in changes(node):
            begin = starts[old.lineno - 1] + old.col_offset
            end = starts[old.end_lineno - 1] + old.end_col_offset
            code = ast.unparse(new) if isinstance(new, ast.stmt) else f"({ast.unparse(new)})"
            changed = (text[:begin] + code.encode() + text[end:]).decode()
            start, after = starts[old.lineno - 1], [*starts[1:], len(text)][old.end_lineno - 1]
            was, now = text[start:after].decode(), text[start:begin].decode() + code
            now += text[end:after].decode()
            place = {"file": name, "line": old.lineno, "span": span}
            place |= {"old": " ".join(was.split()), "new": " ".join(now.split())}
            found.append(place | {"text": changed})
        for field, value in ast.iter_fields(node):
            # The words of an error and annotations stay.
            if field not in ("annotation", "returns", "exc", "decorator_list"):
                for child in value if isinstance(value, list) else [value]:
                    if isinstance(child, ast.AST) and not isinstance(child, ast.JoinedStr):
                        visit(child, span)

    tree = ast.parse(text)
    if name == "presets":  # the paper's numbers; all other recipes are free
        tree.body = [node for node in tree.body if ast.unparse(node).startswith("PAPER")]
    visit(tree, (1, 1))
    return found


class Changed(importlib.machinery.SourceFileLoader):
    """Loads one module from a changed text."""

    def __init__(self, name: str, path: str, text: str):
        super().__init__(name, path)
        self.text = text

    def get_code(self, fullname: str):
        return compile(self.text, self.path, "exec")

    def find_spec(self, name: str, path=None, target=None):
        """As a finder: only of this module."""
        if name != self.name:
            return None
        within = [os.path.dirname(self.path)] if self.path.endswith("__init__.py") else None
        return importlib.util.spec_from_file_location(
            name, self.path, loader=self, submodule_search_locations=within
        )


def test_files(name: str) -> list[str]:
    """Return the test files of a file of the street."""
    places = [ROOT / "tests" / test for test in TESTS[name].split()]
    return [str(place.with_name(f"test_{place.name}.py")) for place in places]


class Recorder:
    """Notes which lines of the street each test runs, and how long it takes."""

    def __init__(self):
        self.always, self.of_test, self.seconds = set(), {}, {}
        self.lines = self.always  # of imports and fixtures: they belong to every test
        sys.settrace(self.trace)

    def pytest_runtest_setup(self):
        sys.settrace(self.trace)  # a test that compiles ends it

    def trace(self, frame, event, argument):
        if "/minidalle/" not in frame.f_code.co_filename:
            return None
        self.lines.add((frame.f_code.co_filename, frame.f_lineno))
        return self.trace

    def pytest_runtest_call(self, item):
        for module in [m for name, m in sys.modules.items() if name.startswith("minidalle")]:
            for value in vars(module).values():
                if hasattr(value, "cache_clear"):  # what another test computed
                    value.cache_clear()
        self.lines = self.of_test[item.nodeid] = set()
        self.seconds[item.nodeid] = -time.monotonic()

    def pytest_runtest_teardown(self, item):
        self.lines = self.always
        if item.nodeid in self.seconds:  # it was not skipped
            self.seconds[item.nodeid] += time.monotonic()

    def pytest_runtest_logreport(self, report):
        if report.failed:  # it is red without a mutant, or was not made for this process
            self.seconds.pop(report.nodeid, None)


class Chooser:
    """Keeps the tests that run a line, the quick ones first."""

    def __init__(self, seconds: dict[str, float]):
        self.seconds = seconds

    def pytest_collection_modifyitems(self, items):
        items[:] = [item for item in items if item.nodeid in self.seconds]
        items.sort(key=lambda item: (str(item.path), self.seconds[item.nodeid]))


def digest(name: str) -> str:
    """Return what names a file of the street and its tests as they are now."""
    texts = map(Path.read_bytes, [ROOT / "minidalle" / f"{name}.py", *map(Path, test_files(name))])
    return f"{name} {hashlib.sha256(b''.join(texts)).hexdigest()[:16]}"


def record(name: str) -> dict[str, dict[str, float]]:
    """Return for each line of a file, as text, the tests that run it and their seconds."""

    def work(folder: str) -> int:
        recorder = Recorder()
        run_tests(test_files(name), folder, [recorder])
        sys.settrace(None)
        path, found = str(ROOT / "minidalle" / f"{name}.py"), {}
        for test, seconds in recorder.seconds.items():
            for file, line in recorder.of_test[test] | recorder.always:
                if file == path:
                    found.setdefault(line, {})[test] = seconds
        Path(folder, "found").write_text(json.dumps(found))
        return 0

    with tempfile.TemporaryDirectory() as folder:
        status = fork(work, folder)
        assert status == 0, Path(folder, "said").read_text()[-2000:]
        return json.loads(Path(folder, "found").read_text())


def judge(mutant: dict, seconds: dict[str, float]) -> str:
    """Run the tests of `seconds` on a mutant. Returns the first that fails, or ''."""

    def work(folder: str) -> int:
        module = "minidalle." + mutant["file"].replace("/", ".").removesuffix(".__init__")
        path = str(ROOT / "minidalle" / f"{mutant['file']}.py")
        sys.meta_path.insert(0, Changed(module, path, mutant["text"]))
        return run_tests(["-x", *test_files(mutant["file"])], folder, [Chooser(seconds)])

    with tempfile.TemporaryDirectory() as folder:
        status = fork(work, folder)
        if status in (0, None):
            return "" if status == 0 else "it never ends"
        said = Path(folder, "said").read_text(errors="replace")
        named = re.findall(r"^(?:FAILED|ERROR) (\S+)", said, re.MULTILINE)
        return named[0] if named else said.strip()[-300:] or "it dies"


def fork(work: Callable[[str], int], folder: str) -> int | None:
    """Return the exit code of a child that does `work`, None where it takes too long."""
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        said, code = os.open(f"{folder}/said", os.O_WRONLY | os.O_CREAT), 9
        for stream in (1, 2):
            os.dup2(said, stream)
        try:
            code = work(folder)
        finally:
            sys.stdout.flush()
            os._exit(code)
    end = time.monotonic() + LIMIT
    while not (status := os.waitpid(pid, os.WNOHANG))[0]:
        time.sleep(0.02)
        if time.monotonic() > end:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return None
    return os.waitstatus_to_exitcode(status[1])


def run_tests(arguments: list[str], folder: str, plugins: list) -> int:
    import pytest

    options = ["-p", "no:cacheprovider", "--basetemp", f"{folder}/t", "-W", "ignore"]
    return int(pytest.main([*options, *arguments], plugins))


def known_equivalents() -> dict[tuple[str, str, str], str]:
    """Return (file, old lines, new lines) -> why no test can tell them apart."""
    text = EQUIVALENT.read_text(encoding="utf-8").strip()
    rows = [block.split("\n", 3) for block in text.split("\n\n") if block]
    return {(name, old[2:], new[2:]): why for name, old, new, why in rows}


def show(rows: list[dict]) -> None:
    """Print the share caught, and the survivors."""
    equivalent, table = known_equivalents(), {name: Counter() for name in TESTS}
    for row in rows:
        why = equivalent.get((row["file"], row["old"], row["new"]))
        kind = "caught" if row["by"] else "equivalent" if why else "survived"
        table[row["file"]][kind] += 1
        if kind == "survived":
            print(f"minidalle/{row['file']}.py:{row['line']}\n- {row['old']}\n+ {row['new']}\n")
    table["all"] = sum(table.values(), Counter())
    for name, found in table.items():
        real = found["caught"] + found["survived"]
        share = f"{found['caught'] / real:6.1%}" if real else ""
        print(f"{name:20} {share} of {real}, and {found['equivalent']} equivalent")


def survivors(rows: list[dict]) -> list[tuple[int, dict]]:
    """Return (row, mutant) of what no test caught, as the file makes it now."""
    found = []
    for i, row in enumerate(rows):
        key = row["file"], row["old"], row["new"]
        if not row["by"] and key not in known_equivalents():
            same = [m for m in mutants(row["file"]) if (m["file"], m["old"], m["new"]) == key]
            found += [(i, m) for m in same if abs(m["line"] - row["line"]) < 20][:1]
    return found


def choose(n: int, seed: int) -> list[dict]:
    """Return about n mutants, of long files more, but not in proportion."""
    found = {name: mutants(name) for name in TESTS}
    weights = {name: len(these) ** 0.5 for name, these in found.items()}
    chance, chosen = random.Random(seed), []
    for name, these in found.items():
        part = min(len(these), round(n * weights[name] / sum(weights.values())))
        chosen += chance.sample(these, part)
    return chosen


def main() -> None:
    """Make mutants until the time is over, and write down what caught each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path, help="a .jsonl file, one line a mutant")
    parser.add_argument("--n", type=int, default=240, help="mutants (default 240)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=540, help="stop after so long")
    parser.add_argument("--show", action="store_true")
    parser.add_argument("--again", action="store_true", help="only what no test caught")
    args = parser.parse_args()
    done = args.out.read_text(encoding="utf-8").splitlines() if args.out.exists() else []
    rows = [json.loads(line) for line in done]
    if args.show:
        return show(rows)

    # What is imported once: all that the street and its tests need, then not the street itself.
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    heavy = ("pytest", "hypothesis.strategies", "torch._inductor.compile_fx", "tokenizers")
    for name in (*heavy, "minidalle.cli", "minidalle.evaluation.measure"):
        importlib.import_module(name)
    for name in [name for name in sys.modules if name.startswith("minidalle")]:
        del sys.modules[name]
    import torch

    torch.set_num_threads(1)
    end, kept = time.monotonic() + args.seconds, args.out.with_suffix(".lines.json")
    jobs = list(enumerate(choose(args.n, args.seed)))[len(rows) :]
    if args.again:
        jobs = survivors(rows)
    lines = json.loads(kept.read_text()) if kept.exists() else {}
    for done, (place, mutant) in enumerate(jobs):
        if time.monotonic() > end:
            print(f"{done} of {len(jobs)} done")
            break
        name = mutant["file"]
        if (state := digest(name)) not in lines:
            lines[state] = record(name)
            kept.write_text(json.dumps(lines))
        began = time.monotonic()
        row = {k: v for k, v in mutant.items() if k != "text"}
        first, last = mutant["span"]
        found = [lines[state].get(str(line), {}) for line in range(first, max(first, last) + 1)]
        tests = {test: seconds for part in found for test, seconds in part.items()}
        row["by"] = judge(mutant, tests) if tests else ""
        row["seconds"] = round(time.monotonic() - began, 1)
        rows[place : place + 1] = [row]
        args.out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    show(rows)


if __name__ == "__main__":
    main()
