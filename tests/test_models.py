"""Models read from a run: which are missing, stale or damaged."""

import pytest
import torch

from minidalle import data
from minidalle.config import get_config, to_json
from minidalle.data import shapes
from minidalle.files import CheckpointError, save_model
from minidalle.generate import Pipeline
from minidalle.models import build, load
from minidalle.stages import finished, train_stage
from minidalle.tokenizer import BPETokenizer
from minidalle.training.finished import MissingStage, digests

OVERRIDES = [
    "dvae.n_hid=8", "dvae.n_init=8", "dalle.n_layers=1", "dalle.n_heads=1", "dalle.head_dim=8",
    "clip.vision_width=12", "clip.text_width=12",
]  # fmt: skip
CONFIG = get_config("toy", OVERRIDES)


def save(run, stage, config=CONFIG, change=None):
    """Write an untrained stage as training leaves it."""
    model = build(config, stage)
    if change:
        change(model)
    needs = {"dalle": ("tokenizer", "dvae"), "clip": ("tokenizer",)}.get(stage, ())
    made_from = digests(run, needs) | data.version(config)
    save_model(run / stage, model.state_dict(), to_json(config), made_from)


@pytest.fixture
def run(tmp_path):
    tokenizer = BPETokenizer.train(["a red heart", "a blue ring"], 300)
    tokenizer.save(tmp_path / "tokenizer" / "tokenizer.json")
    for stage in ("dvae", "dalle", "clip"):
        save(tmp_path, stage)
    return tmp_path


def test_a_whole_run_is_loaded(run):
    pipeline = Pipeline.load(run)
    assert pipeline.reranker.tokenizer.vocab_size == pipeline.tokenizer.vocab_size
    assert finished(run, "dalle", CONFIG)


def test_a_prior_of_another_dvae_is_stale_and_the_command_is_named(run):
    save(run, "dvae", get_config("toy", ["dvae.n_hid=8", "dvae.n_init=8", "seed=1"]))
    for use in (Pipeline.load, lambda r: load(r, "dalle"), lambda r: finished(r, "dalle", CONFIG)):
        with pytest.raises(MissingStage, match=r"dalle .* is stale: dvae .* --fresh"):
            use(run)
    load(run, "clip")  # knows no dvae


def test_a_new_tokenizer_makes_prior_and_clip_stale(run):
    tokenizer = BPETokenizer.train(["a green star", "a blue ring"], 300)
    tokenizer.save(run / "tokenizer" / "tokenizer.json")
    for stage in ("dalle", "clip"):
        with pytest.raises(MissingStage, match=f"{stage} .* is stale: tokenizer"):
            load(run, stage)


@pytest.mark.parametrize("name, value", [("JITTER", 0.2), ("VERSION", 1)])
def test_a_run_of_an_older_world_is_refused_by_name_but_still_draws(run, monkeypatch, name, value):
    assert finished(run, "dvae", CONFIG)
    monkeypatch.setattr(shapes, name, value)
    for stage in ("dvae", "dalle", "clip"):
        with pytest.raises(
            ValueError, match=rf"the {stage} in .*version 2.*now .*{value}.*--fresh"
        ):
            finished(run, stage, CONFIG)
    Pipeline.load(run)


def test_a_training_that_began_in_an_older_world_is_not_gone_on_with(tmp_path, monkeypatch):
    small = ["data.n_train=8", "data.n_test=4", "dvae.spread_codes=false", "train_dvae.warmup=0"]
    short, longer = (
        get_config("toy", [*OVERRIDES, *small, f"train_dvae.steps={n}"]) for n in (1, 2)
    )
    train_stage(short, "dvae", tmp_path)
    monkeypatch.setattr(shapes, "VERSION", 3)
    with pytest.raises(ValueError, match=r"version 2.*version 3"):
        train_stage(longer, "dvae", tmp_path)


@pytest.mark.parametrize("stage", ["dvae", "dalle", "clip"])
def test_the_seed_decides_the_first_weights(stage):
    first, same, other = (
        build(get_config("toy", [*OVERRIDES, f"seed={seed}"]), stage).state_dict()
        for seed in (1, 1, 2)
    )
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_the_channels_of_a_dvae_lie_last_in_memory():  # several times faster on a CPU
    weights = [p for p in build(CONFIG, "dvae").parameters() if p.ndim == 4 and p.shape[-1] > 1]
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in weights)


def test_a_stage_alone_needs_no_earlier_one(run):
    for path in (run / "tokenizer").iterdir():
        path.unlink()
    load(run, "dalle")


@pytest.mark.parametrize("stage", ["dvae", "dalle", "clip"])
def test_weights_that_are_not_finite_are_refused_by_name(run, stage):
    def break_one(model):
        with torch.no_grad():
            next(model.parameters())[0] = float("nan")

    save(run, stage, change=break_one)
    with pytest.raises(CheckpointError, match=rf"{stage}: .* is not finite"):
        load(run, stage)


def test_what_may_change_between_the_parts_of_a_run_does_not_make_it_another(run):
    assert finished(run, "dalle", get_config("toy", [*OVERRIDES, "train_dalle.log_every=7"]))
    with pytest.raises(ValueError, match=r"train_dalle\.steps was \d+, is now 7"):
        finished(run, "dalle", get_config("toy", [*OVERRIDES, "train_dalle.steps=7"]))
