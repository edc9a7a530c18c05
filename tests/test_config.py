"""The table of presets and its overrides."""

import dataclasses

import pytest

from minidalle.config import PRESETS, from_dict, get_config


def test_every_preset_fits_together():
    names = ["toy", "scenes", "mnist", "cifar", "own", "mini_toy", "small", "mini", "mega"]
    names += ["base", "12b"]
    assert list(PRESETS) == names
    for config in PRESETS.values():
        assert from_dict(dataclasses.asdict(config)) == config


def test_the_12b_preset_is_the_paper():
    c = get_config("12b")
    assert (c.dalle.n_layers, c.dalle.n_heads, c.dalle.head_dim, c.dalle.width) == (
        64,
        62,
        64,
        3968,
    )
    assert (c.dalle.text_len, c.dalle.grid, c.dalle.kernel) == (256, 32, 11)
    assert (c.dvae.n_hid, c.dvae.n_blocks, c.dvae.n_pools, c.dvae.n_init) == (256, 2, 3, 128)
    assert (c.tokenizer.vocab_size, c.tokenizer.dropout, c.dvae.vocab_size) == (16_384, 0.1, 8192)
    assert (c.dvae.beta, c.dvae.beta_steps, c.dvae.tau, c.dvae.tau_steps) == (
        6.6,
        5e3,
        1 / 16,
        15e4,
    )
    t = c.train_dvae
    assert (t.lr, t.lr_end, t.lr_steps, t.steps, t.batch_size) == (1e-4, 1.25e-6, 1.2e6, 3e6, 512)
    assert (t.betas, t.eps, t.weight_decay, t.ema_decay) == ((0.9, 0.999), 1e-8, 1e-4, 0.999)
    t = c.train_dalle
    assert (t.lr, t.warmup, t.batch_size, t.steps) == (4.5e-4, 5000, 1024, 430_000)
    assert (t.betas, t.weight_decay, t.clip_norm, t.clip_variance) == ((0.9, 0.96), 0.045, 4, 5)
    assert (t.ema_decay, t.ema_every, len(t.halve_at)) == (0.99, 25, 5)


def test_overrides_are_read_as_the_type_of_their_field():
    c = get_config(
        "toy",
        [
            "dalle.n_layers=2", "dvae.min_log_b=none", "train_dalle.betas=(0.5, 0.9)",
            "dalle.checkpointing=true", "train_clip.lr=3e-4", "seed=7", "data.name=shapes",
            "train_dalle.halve_at=(1, 2)", "data.n_train=1_000",
        ],
    )  # fmt: skip
    assert c.dalle.n_layers == 2 and c.dvae.min_log_b is None and c.dalle.checkpointing is True
    assert c.train_dalle.betas == (0.5, 0.9) and c.train_dalle.halve_at == (1, 2)
    assert c.train_clip.lr == 3e-4 and c.seed == 7 and c.data.n_train == 1000


@pytest.mark.parametrize(
    "override, message",
    [
        ("dalle.n_layers", "looks like section.field=value"),
        ("dalle.layers=2", "unknown field: dalle has no 'layers'; it has text_vocab"),
        ("model.n_layers=2", "unknown section in 'model.n_layers=2'; choose from data"),
        ("dalle=2", "must be an object of fields"),
        ("preset=12b", "looks like section.field=value"),
        ("dalle.n_layers=two", "'two' is not a valid int"),
        ("dalle.n_layers=2.5", "2.5 is not a valid int"),
        ("dalle.n_layers=", "'' is not a valid int"),
        ("dalle.n_layers=0", "dalle.n_layers=0 must be a number and positive"),
        ("train_dvae.lr=nan", "'nan' is not a valid float"),
        ("train_dvae.lr=-1", "train_dvae.lr=-1.0 must be a number and positive"),
        ("dalle.checkpointing=maybe", "'maybe' is not a valid bool"),
        ("train_dalle.betas=0.9", "0.9 is not a valid tuple"),
        ("train_dalle.betas=(0.9, __import__('os'))", "is not a valid tuple"),
        ("tokenizer.dropout=1.5", "tokenizer.dropout=1.5 must be at most 1"),
        ("dvae.image_size=30", "dvae.image_size=30 is not a multiple"),
        ("dalle.grid=9", "dalle.grid=9 must equal"),
        ("dvae.vocab_size=99", "dalle.image_vocab=256 must equal dvae.vocab_size=99"),
        ("tokenizer.vocab_size=600", "dalle.text_vocab=512 must equal"),
    ],
)
def test_a_wrong_override_is_named(override, message):
    with pytest.raises(ValueError) as error:
        get_config("toy", [override])
    assert message in str(error.value)


def test_an_unknown_preset_lists_the_known_ones():
    with pytest.raises(ValueError, match="unknown preset 'big'; choose from toy, scenes, mnist"):
        get_config("big")
