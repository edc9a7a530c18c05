"""Each stage is built in its notebook: the twin of every class and formula, and the proof.

A twin is the class or function of a notebook that does what its namesake of the package does.
The proof is a cell that asserts that both give the same: an assertion of equality with something
of the twin on one side and something of the package on the other. nbval runs it; here we see to
it that it stands there.
"""

import ast
import re
from functools import cache
from pathlib import Path

import nbformat
import pytest
from helpers import lessons
from helpers.lessons import FOLDER

from minidalle import cache as cached
from minidalle import clip, config, dalle, dvae, generate, tokenizer, train, transformer
from minidalle.attention import masks
from minidalle.attention.dense import dense
from minidalle.training import optim

ROOT = Path(__file__).resolve().parents[2]
# The package's object: (notebook, its twin, cell of the proof)
TWINS = {
    tokenizer.BPETokenizer: ("01_bpe", "Tokenizer", "bond"),
    tokenizer.BPETokenizer.train: ("01_bpe", "train", "train-on-captions"),
    tokenizer.BPETokenizer.encode_batch: ("01_bpe", "encode_batch", "pad"),
    tokenizer.normalise: ("01_bpe", "normalise", "normalise"),
    dvae.map_pixels: ("02_dvae", "map_pixels", "map-pixels"),
    dvae.unmap_pixels: ("02_dvae", "unmap_pixels", "map-pixels"),
    dvae.gumbel_softmax: ("02_dvae", "gumbel_softmax", "gumbel-softmax"),
    dvae.logit_laplace_nll: ("02_dvae", "logit_laplace_nll", "likelihood"),
    dvae.kl_to_uniform: ("02_dvae", "kl_to_uniform", "kl"),
    dvae.Conv2d: ("02_dvae", "Conv2d", "bond"),
    dvae.Block: ("02_dvae", "Block", "bond"),
    dvae.Encoder: ("02_dvae", "Encoder", "bond"),
    dvae.Decoder: ("02_dvae", "Decoder", "bond"),
    dvae.DiscreteVAE: ("02_dvae", "DiscreteVAE", "bond"),
    dvae.DiscreteVAE.loss: ("02_dvae", "dvae_loss", "bond"),
    config.half_cosine: ("02_dvae", "half_cosine", "schedule"),
    masks.row_mask: ("03_sparse_attention", "row", "masks"),
    masks.column_mask: ("03_sparse_attention", "column", "column"),
    masks.conv_mask: ("03_sparse_attention", "conv", "conv"),
    dense: ("03_sparse_attention", "look", "bond"),
    transformer.layer_kinds: ("03_sparse_attention", "schedule", "schedule"),
    transformer.LayerNorm: ("03_sparse_attention", "LayerNorm", "bond"),
    transformer.Attention: ("03_sparse_attention", "Attention", "bond"),
    transformer.MLP: ("03_sparse_attention", "MLP", "bond"),
    transformer.Block: ("03_sparse_attention", "Block", "bond"),
    transformer.Transformer: ("03_sparse_attention", "Transformer", "bond"),
    dalle.DALLE: ("04_dalle", "TinyDALLE", "bond"),
    optim.AdamW: ("04_dalle", "AdamW", "adam-check"),
    optim.learning_rate: ("04_dalle", "rate", "rate"),
    train.fit: ("04_dalle", "train", "loop-check"),
    clip.QuickGELU: ("05_clip", "QuickGELU", "bond"),
    clip.Attention: ("05_clip", "Attention", "bond"),
    clip.ResidualAttentionBlock: ("05_clip", "ResidualAttentionBlock", "bond"),
    clip.Transformer: ("05_clip", "Transformer", "bond"),
    clip.VisionTransformer: ("05_clip", "VisionTransformer", "bond"),
    clip.CLIP: ("05_clip", "CLIP", "bond"),
    cached.LayerCache: ("06_generate", "LayerCache", "bond"),
    generate.draw: ("06_generate", "draw", "bond"),
    generate.restrict: ("06_generate", "restrict", "bond"),
    generate.sample: ("06_generate", "sample", "bond"),
}
# Modules of the street in which nothing is computed that a lesson could compute again.
WITHOUT_TWIN = {"models", "stages"}  # which class builds which part; the order of a run
# Notebooks whose twin takes over what was learned: the line that does it.
EQUAL = ("torch.equal", "math.isclose")
LESSONS = [path.stem for path in sorted(FOLDER.glob("0[1-6]_*.ipynb"))]
WEIGHTS = r"^mine\.load_state_dict\(shipped\S*\.state_dict\(\)\)$"
TAKES_OVER = {
    "01_bpe": r"^mine = Tokenizer\(shipped\.merges\)$",
    **dict.fromkeys(("02_dvae", "03_sparse_attention", "04_dalle", "05_clip"), WEIGHTS),
}
WATCHED = ("01_bpe", "02_dvae", "05_clip", "06_generate")

every = pytest.mark.parametrize("ours", TWINS, ids=lambda o: f"{o.__module__}.{o.__qualname__}")


@cache
def cells(name: str) -> dict[str, ast.Module]:
    """The code of a notebook by cell, in order, as syntax trees."""
    return {cell: ast.parse(source) for cell, source in lessons.cells(name).items()}


def names_in(tree: ast.AST) -> set[str]:
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def definitions(name: str) -> dict[str, ast.AST]:
    """Every class and function at the top of a cell, but for those that are subclasses of ours."""
    kinds = ast.ClassDef | ast.FunctionDef
    return {d.name: d for tree in cells(name).values() for d in tree.body if isinstance(d, kinds)}


def built_with(name: str, found: str) -> set[str]:
    """Names of the notebook's definitions that use `found`, directly or through others."""
    users = {found}
    for _ in definitions(name):
        users |= {d for d, tree in definitions(name).items() if names_in(tree) & users}
    return users


def follow(name: str, seeds: set[str], until: str) -> set[str]:
    """Every variable up to cell `until` whose value was made with one of the seeds."""
    known = set(seeds)
    for cell, tree in cells(name).items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign) and names_in(node.value) & known:
                known |= {n for target in node.targets for n in names_in(target)}
            elif isinstance(node, ast.For) and names_in(node.iter) & known:
                known |= names_in(node.target)
        if cell == until:
            return known
    raise AssertionError(f"{name} has no cell {until}")


def from_package(name: str) -> set[str]:
    """What a notebook imports from the package."""
    return {
        alias.asname or alias.name
        for tree in cells(name).values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module.startswith("minidalle")
        for alias in node.names
    }


def equalities(tree: ast.AST) -> list[tuple[ast.AST, ast.AST]]:
    """Both sides of every asserted equality: ==, torch.equal, math.isclose, assert_close."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert):
            for part in ast.walk(node.test):
                if isinstance(part, ast.Compare) and isinstance(part.ops[0], ast.Eq):
                    found.append((part.left, part.comparators[0]))
                elif isinstance(part, ast.Call) and ast.unparse(part.func) in EQUAL:
                    found.append((part.args[0], part.args[1]))
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.testing.assert_close":
            found.append((node.args[0], node.args[1]))
    return found


def test_every_module_of_the_street_has_its_twin_in_a_lesson():
    """The street is what stands on README's map."""
    map_ = (ROOT / "README.md").read_text(encoding="utf-8")
    street = set(re.findall(r"^\| \[(\w+)\]\(minidalle/", map_, re.MULTILINE))
    assert len(street) == 12
    assert street - {ours.__module__.split(".")[1] for ours in TWINS} == WITHOUT_TWIN


@every
def test_its_twin_is_written_in_the_notebook(ours):
    name, twin, _ = TWINS[ours]
    assert twin in definitions(name), f"{name} does not define {twin}"
    assert isinstance(definitions(name)[twin], ast.ClassDef) == isinstance(ours, type)


@every
def test_a_cell_asserts_that_both_give_the_same(ours):
    name, twin, proof = TWINS[ours]
    theirs = follow(name, from_package(name) - {"get_config"}, proof)
    mine = follow(name, built_with(name, twin), proof)
    for left, right in equalities(cells(name)[proof]):
        if names_in(left) & mine and names_in(right) & theirs:
            return
    raise AssertionError(f"{name}: cell {proof} compares nothing of {twin} with the package")


@pytest.mark.parametrize("name", TAKES_OVER)
def test_the_twin_takes_over_what_was_shipped(name):
    assert re.search(TAKES_OVER[name], lessons.cells(name)["bond"], re.MULTILINE)


@pytest.mark.parametrize("name", WATCHED)
def test_what_learns_is_watched_and_something_is_broken(name):
    ids = list(cells(name))
    assert any(i.startswith("strip") for i in ids), "strips at updates 0, 30, 120 and the end"
    assert any(i.startswith("break") for i in ids), "something broken on purpose"


@pytest.mark.parametrize("name", LESSONS)
def test_the_text_is_a_lesson_of_2000_to_3500_words(name):
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    text = "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")
    prose = re.sub(r"```.*?```|\$\$.*?\$\$|\$[^$]*\$|!?\[[^\]]*\]\([^)]*\)", "", text, flags=re.S)
    words = [word for word in prose.split() if re.search("[A-Za-z]", word)]
    assert 2000 <= len(words) <= 3500, len(words)
    assert any("| paper | toy | mark |" in c.source for c in notebook.cells)
    for mark in ("[paper", "[our reading", "[our choice]"):
        assert mark in text, mark
