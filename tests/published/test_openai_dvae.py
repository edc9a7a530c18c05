"""Files that claim to be the released dVAE: whatever they hold, one line says what is wrong."""

import pytest
import torch
from torch import nn

from minidalle.published.openai_dvae import load, read_state


def write(path, **attributes):
    """Pickle a module with these attributes of its own."""
    module = nn.Sequential()
    module.__dict__.update(attributes)
    torch.save(module, path)


def test_parameters_are_read_by_their_names(tmp_path):
    inner = nn.Sequential()
    inner._parameters["w"] = nn.Parameter(torch.ones(2, dtype=torch.float16))
    inner._parameters["b"] = None
    write(tmp_path / "encoder.pkl", _modules={"blocks": inner})
    state = read_state(tmp_path / "encoder.pkl")
    assert list(state) == ["blocks.w"] and torch.equal(state["blocks.w"], torch.ones(2))


@pytest.mark.parametrize(
    "attributes, message",
    [
        (dict(_parameters=3), "no modules within modules"),
        (dict(_parameters=["w"]), "no modules within modules"),
        (dict(_modules="abc"), "no modules within modules"),
        (dict(_parameters={"w": "hello"}), "w is a str, not a tensor"),
        (dict(_parameters={"w": [1.0]}), "w is a list, not a tensor"),
        (dict(_parameters={"w": torch.zeros(2).to_sparse()}), "w is no plain tensor"),
        (dict(_parameters={"w": torch.zeros(2, dtype=torch.cfloat)}), "w is no plain tensor"),
        (dict(_parameters={"w": torch.zeros(2, device="meta")}), "w is no plain tensor"),
    ],
)
def test_what_is_no_module_of_tensors_is_named(tmp_path, attributes, message):
    write(tmp_path / "encoder.pkl", **attributes)
    with pytest.raises(ValueError, match=rf"encoder\.pkl.*{message}"):
        read_state(tmp_path / "encoder.pkl")


def test_a_module_within_itself_is_refused(tmp_path):
    module = nn.Sequential()
    module._modules["again"] = module
    torch.save(module, tmp_path / "encoder.pkl")
    with pytest.raises(ValueError, match="no modules within modules"):
        read_state(tmp_path / "encoder.pkl")


SMALL = {
    "blocks.input.w": torch.zeros(4, 3, 7, 7),
    "blocks.output.conv.w": torch.zeros(8, 16, 1, 1),
}
GROUP = {"blocks.group_1.block_1.w": torch.zeros(1)}
ENDLESS = torch.zeros(1).expand(10**6, 3, 7, 7)  # a file of a few bytes may say so


@pytest.mark.parametrize(
    "encoder, message",
    [
        ({}, "layers of no dVAE"),
        (SMALL, "layers of no dVAE"),
        (SMALL | GROUP | {"blocks.input.w": torch.zeros(())}, "layers of no dVAE"),
        (SMALL | {f"blocks.group_{i}.x": torch.zeros(1) for i in range(99)}, "layers of no dVAE"),
        (SMALL | GROUP, "lacks blocks.input.b"),
        (SMALL | GROUP | {"blocks.input.w": ENDLESS}, "lacks blocks.input.b"),
    ],
)
def test_shapes_of_no_dvae_are_refused_before_memory_is_taken(tmp_path, encoder, message):
    write(tmp_path / "encoder.pkl", _parameters=encoder)
    write(tmp_path / "decoder.pkl", _parameters={"blocks.input.w": torch.zeros(4, 8, 1, 1)})
    with pytest.raises(ValueError, match=rf"encoder\.pkl.*{message}"):
        load(tmp_path)
