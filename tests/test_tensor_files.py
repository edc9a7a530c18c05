"""Files of tensors: a flipped bit is noticed wherever it is."""

import pytest
import torch

from minidalle.files import CheckpointError, load_tensors, save_tensors


def test_a_flipped_bit_inside_a_tensor_names_the_file(tmp_path):
    path = tmp_path / "model.safetensors"
    tensors = {
        "a": torch.arange(6.0),
        "b": torch.ones(2, 2, dtype=torch.bfloat16),
        "c": torch.ones(()),
    }
    save_tensors(path, tensors, {"format": "pt"})
    found, metadata = load_tensors(path)
    assert metadata["format"] == "pt" and all(torch.equal(found[k], v) for k, v in tensors.items())
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        load_tensors(path)


def test_a_file_of_another_program_needs_no_checksum(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.ones(3)}, tmp_path / "a.safetensors")
    assert load_tensors(tmp_path / "a.safetensors")[0]["a"].sum() == 3
