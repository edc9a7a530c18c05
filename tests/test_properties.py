"""Whatever the input: right results or a clear error. Hypothesis looks for the exception."""

import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minidalle.config import (
    PRESETS,
    Config,
    from_json,
    get_config,
    to_json,
)
from minidalle.dalle import DALLE
from minidalle.files import CheckpointError, load_tensors, save_tensors
from minidalle.generate import sample

quick = settings(
    max_examples=60, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)  # fmt: skip

FIELDS = [
    f"{section}.{field}"
    for section, fields in json.loads(to_json(get_config("toy"))).items()
    if isinstance(fields, dict)
    for field in fields
]
numbers = st.one_of(st.integers(), st.floats(), st.integers(-3, 300))
values = st.one_of(st.text(max_size=12), numbers.map(str), st.tuples(numbers, numbers).map(str))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
anything = st.floats(allow_nan=True, allow_infinity=True) | st.floats(-2, 2)


@quick
@given(st.sampled_from(sorted(PRESETS)), st.lists(st.text(max_size=40), max_size=3))
def test_any_text_is_an_override_or_a_clear_error(preset, overrides):
    _override_or_error(preset, overrides)


@settings(quick, max_examples=400)
@given(st.sampled_from(sorted(PRESETS)), st.sampled_from(FIELDS), values)
def test_any_value_of_any_field_is_taken_or_a_clear_error(preset, field, value):
    _override_or_error(preset, [f"{field}={value}"])


def _override_or_error(preset, overrides):
    try:
        config = get_config(preset, overrides)
    except ValueError as error:
        assert len(str(error)) > 10
    else:
        assert from_json(to_json(config)) == config


@settings(quick, max_examples=200)
@given(st.sampled_from(FIELDS), json_values)
def test_any_json_value_in_a_stored_configuration_is_taken_or_a_clear_error(field, value):
    content = json.loads(to_json(get_config("toy")))
    section, name = field.split(".")
    content[section][name] = value
    try:
        assert isinstance(from_json(json.dumps(content)), Config)
    except ValueError as error:
        assert len(str(error)) > 10


@pytest.fixture(scope="module")
def dalle():
    sizes = ["dalle.n_layers=1", "dalle.n_heads=1", "dalle.head_dim=8"]
    sizes += ["dvae.vocab_size=256", "dalle.image_vocab=256"]
    return DALLE(get_config("toy", sizes).dalle).eval()


@settings(quick, max_examples=80)
@given(
    st.integers(-1, 3), anything, st.none() | st.integers(-2, 300), st.none() | anything,
    st.lists(st.integers(-3, 600), max_size=40), st.booleans(),
)  # fmt: skip
def test_any_sampling_arguments_give_tokens_or_a_clear_error(
    dalle, n, temperature, top_k, top_p, text, use_cache
):
    options = dict(temperature=temperature, top_k=top_k, top_p=top_p, use_cache=use_cache)
    try:
        tokens = sample(dalle, text, n, generator=torch.Generator().manual_seed(0), **options)
    except ValueError as error:
        assert len(str(error)) > 10
    else:
        assert tokens.shape == (n, 8, 8) and tokens.dtype == torch.int64
        assert tokens.min() >= 0 and tokens.max() < 256


@settings(quick, max_examples=150)
@given(st.data())
def test_a_damaged_file_of_tensors_is_refused_or_read(tmp_path, data):
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"a": torch.arange(6.0), "b": torch.zeros(2, 2)}, {"meta": "{}"})
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    del content[data.draw(st.integers(0, len(content))) if data.draw(st.booleans()) else None :]
    path.write_bytes(content)
    try:
        tensors, texts = load_tensors(path)
    except CheckpointError as error:
        assert "x.safetensors" in str(error)
    else:
        assert all(isinstance(t, torch.Tensor) for t in tensors.values()) and "meta" in str(texts)
