"""The table of presets and its overrides."""

import dataclasses
import math
import re

import pytest

from minidalle.config import (
    PRESETS,
    DALLEConfig,
    DVAEConfig,
    MiniConfig,
    VQGANConfig,
    from_dict,
    from_json,
    get_config,
    to_json,
)


def test_every_preset_fits_together():
    names = ["toy", "scenes", "mnist", "fashion_mnist", "cifar", "own", "mini_toy", "small"]
    names += ["mini", "mega", "base", "12b"]
    assert list(PRESETS) == names
    for config in PRESETS.values():
        assert from_dict(dataclasses.asdict(config)) == config


def test_the_12b_preset_is_the_paper():
    c = get_config("12b")
    d = c.dalle
    assert (d.n_layers, d.n_heads, d.head_dim, d.width) == (64, 62, 64, 3968)
    assert (d.text_len, d.grid, d.kernel) == (256, 32, 11)
    d = c.dvae
    assert (d.n_hid, d.n_blocks, d.n_pools, d.n_init) == (256, 2, 3, 128)
    assert (d.beta, d.beta_steps, d.tau, d.tau_steps) == (6.6, 5e3, 1 / 16, 15e4)
    assert (c.tokenizer.vocab_size, c.tokenizer.dropout, d.vocab_size) == (16_384, 0.1, 8192)
    t = c.train_dvae
    assert (t.lr, t.lr_end, t.lr_steps, t.steps, t.batch_size) == (1e-4, 1.25e-6, 1.2e6, 3e6, 512)
    assert (t.betas, t.eps, t.weight_decay, t.ema_decay) == ((0.9, 0.999), 1e-8, 1e-4, 0.999)
    t = c.train_dalle
    assert (t.lr, t.warmup, t.batch_size, t.steps) == (4.5e-4, 5000, 1024, 430_000)
    assert (t.betas, t.weight_decay, t.clip_norm, t.clip_variance) == ((0.9, 0.96), 0.045, 4, 5)
    assert (t.ema_decay, t.ema_every, len(t.halve_at)) == (0.99, 25, 5)
    t = c.train_clip  # Radford et al. 2021, table 18; 32 epochs of 400 million pairs
    assert (t.lr, t.warmup, t.batch_size, t.weight_decay) == (5e-4, 2000, 32_768, 0.2)
    assert (t.betas, t.eps, t.steps) == ((0.9, 0.98), 1e-6, pytest.approx(32 * 4e8 / 32_768, 0.01))
    assert (c.data.min_caption, c.data.max_aspect, c.data.augment) == (5, 2.0, True)
    for t in (c.train_dvae, c.train_dalle, c.train_clip):  # all in 16 bits
        assert t.precision == "bfloat16"


# Numbers of which 0, or nothing below, is allowed: all others must be above 0.
RANGES = {
    (0, 1): "dropout text_weight caption_dropout fall ema_decay lookalikes rebuilt revive",
    (0, math.inf): "min_caption max_aspect beta commitment disc_weight disc_start denoise_steps "
    "residual_init lr_end warmup lr_steps muon_lr weight_decay clip_norm clip_variance keep seed",
    (-math.inf, math.inf): "min_log_b",
    (0, 0.9999): "decay",
    (0, 16): "n_pools",
    (256, math.inf): "tokenizer.vocab_size",
    (2, math.inf): "dalle.text_len",
    (3, math.inf): "mini.text_len",
}


def in_range(overrides: list[str]) -> bool:
    """Does a number lie in its range? Whether sizes fit together is another question."""
    try:
        get_config("toy", overrides)
    except ValueError as error:
        return not re.search("must be a number and|must be at most", str(error))
    return True


@pytest.mark.parametrize(
    "chosen", ["codebook=dvae", "codebook=vqvae", "codebook=vqgan", "prior=mini"]
)
def test_every_number_is_taken_at_the_ends_of_its_range_and_not_beyond(chosen):
    ends = {name: pair for pair, names in RANGES.items() for name in names.split()}
    for section, values in dataclasses.asdict(get_config("toy", [chosen])).items():
        for field, value in (values if isinstance(values, dict) else {section: values}).items():
            if not isinstance(value, int | float) or isinstance(value, bool):
                continue
            part = "mini" if (section, chosen) == ("dalle", "prior=mini") else section
            low, high = ends.get(f"{part}.{field}") or ends.get(field) or (None, math.inf)
            step = 1 if isinstance(value, int) else 0.01
            path = field if field == section else f"{section}.{field}"
            for number in (step if low is None else max(low, -1000), min(high, 1000)):
                assert in_range([chosen, f"{path}={number}"]), (path, number)
            for number in (0 if low is None else low - step, high + step):
                if math.isfinite(number):
                    assert not in_range([chosen, f"{path}={number}"]), (path, number)


def test_the_defaults_of_the_models_are_the_published_ones():
    assert DVAEConfig() == get_config("12b").dvae
    assert DALLEConfig(checkpointing=True) == get_config("12b").dalle
    assert MiniConfig() == get_config("mini").dalle
    vqgan = VQGANConfig()  # ch, num_res_blocks and z_channels of the published f16 model
    assert (vqgan.n_hid, vqgan.n_blocks, vqgan.n_init) == (128, 2, 256)


def test_the_clip_of_the_12b_preset_reads_the_tokens_of_the_prior():
    config = get_config("12b")  # and a first and a last one
    assert config.clip.vocab_size == config.dalle.text_vocab + 2
    assert config.clip.context_length == config.dalle.text_len + 1


def test_a_field_that_the_chosen_part_lacks_is_refused_in_whatever_order():
    overrides = ["dalle.kernel=3", "prior=mini"]  # masks are DALLE's
    for said in (overrides, overrides[::-1]):
        with pytest.raises(ValueError, match="kernel"):
            get_config("toy", said)


def test_overrides_are_read_as_the_type_of_their_field():
    c = get_config(
        "toy",
        [
            "dalle.n_layers=2", "dvae.min_log_b=none", "train_dalle.betas=(0.5, 0.9)",
            "dalle.checkpointing=true", "train_clip.lr=3e-4", "seed=7", "data.name=shapes",
            "train_dalle.halve_at=(0, 2)", "data.n_train=1_000",
        ],
    )  # fmt: skip
    assert c.dalle.n_layers == 2 and c.dvae.min_log_b is None and c.dalle.checkpointing is True
    assert c.train_dalle.betas == (0.5, 0.9) and c.train_dalle.halve_at == (0, 2)
    assert (
        c.train_clip.lr == 3e-4
        and (c.seed, get_config("toy").seed) == (7, 0)
        and c.data.n_train == 1000
    )


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
        ("train_dalle.betas=(0.9, 1.0)", "t.betas=(0.9, 1.0) must lie in [0, 1)"),
        ("train_dalle.betas=(-0.1, 0.9)", "t.betas=(-0.1, 0.9) must lie in [0, 1)"),
        ("train_dalle.halve_at=(5, -1)", "t.halve_at=(5, -1) not below 0"),
        ("train_dalle.betas=(0.9, __import__('os'))", "is not a valid tuple"),
        ("tokenizer.dropout=1.5", "tokenizer.dropout=1.5 must be at most 1"),
        ("dvae.image_size=30", "dvae.image_size=30 is not a multiple"),
        ("dalle.grid=9", "dalle.grid=9 must equal"),
        ("dvae.vocab_size=99", "dalle.image_vocab=256 must equal dvae.vocab_size=99"),
        ("tokenizer.vocab_size=600", "dalle.text_vocab=512 must equal"),
        ("data.image_size=64", "data.image_size=64 must equal dvae.image_size=32"),
        ("clip.image_size=64", "clip.image_size=64 must equal data.image_size=32"),
        ("clip.vocab_size=513", "clip.vocab_size=513 must be at least 514"),
        ("clip.context_length=25", "clip.context_length=25 must be at least 26"),
        ("clip.vision_heads=5", "clip.vision_width=96 is not a multiple of clip.vision_heads=5"),
        ("clip.text_heads=3", "clip.text_width=64 is not a multiple of clip.text_heads=3"),
        ("clip.patch_size=5", "clip.image_size=32 is not a multiple of clip.patch_size=5"),
        ("train_dalle.accumulate=5", "train_dalle.batch_size=32 is not a multiple of"),
        ("train_clip.accumulate=2", "must be 1: the loss compares the whole batch"),
        ("dalle.kernel=4", "dalle.kernel=4 must be odd"),
    ],
)
def test_a_wrong_override_is_named(override, message):
    with pytest.raises(ValueError) as error:
        get_config("toy", [override])
    assert message in str(error.value)


def test_a_stored_configuration_has_a_line_for_each_field():
    lines = to_json(get_config("toy")).splitlines()
    assert '    "n_layers": 4,' in lines and len(lines) > 100


def test_a_clip_for_a_folder_of_images_may_have_a_size_of_its_own():
    assert get_config("own", ["clip.image_size=64"]).clip.image_size == 64


@pytest.mark.parametrize("text", ["{", "", "[" * 100_000])
def test_a_stored_configuration_that_is_no_json_is_refused(text):
    with pytest.raises(ValueError, match="the configuration is not JSON"):
        from_json(text)


def test_an_unknown_preset_lists_the_known_ones():
    with pytest.raises(ValueError, match="unknown preset 'big'; choose from toy, scenes, mnist"):
        get_config("big")
