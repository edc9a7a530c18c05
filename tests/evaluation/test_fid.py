"""FID: clear words where Inception is missing, the right call where it is there."""

import sys
from types import SimpleNamespace

import pytest
import torch

from minidalle.evaluation.fid import WEIGHTS, find_weights, inception_metrics


def test_a_missing_package_or_weight_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(ValueError, match="pip install torch-fidelity"):
        inception_metrics(torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8))
    with pytest.raises(ValueError, match=f"put {WEIGHTS} .* into {tmp_path}"):
        find_weights(tmp_path)


def test_the_package_is_given_drawn_and_true_pictures(tmp_path, monkeypatch):
    def calculate_metrics(input1, input2, **options):
        assert options["feature_extractor_weights_path"] == str(tmp_path / WEIGHTS)
        assert options["fid"] and options["isc"] and not options["cuda"]
        assert input1[0].dtype == torch.uint8 and input1[0].shape == (3, 8, 8)
        assert (len(input1), len(input2)) == (2, 3) and input1[1].unique().tolist() == [51]
        return {"frechet_inception_distance": 17.5, "inception_score_mean": 3.0}

    fake = SimpleNamespace(calculate_metrics=calculate_metrics)
    monkeypatch.setitem(sys.modules, "torch_fidelity", fake)
    (tmp_path / WEIGHTS).write_bytes(b"")
    true, drawn = torch.zeros(3, 3, 8, 8, dtype=torch.uint8), torch.full((2, 3, 8, 8), 0.2)
    found = inception_metrics(true, drawn, folder=tmp_path)
    assert found == {"fid": 17.5, "inception_score": 3.0}
