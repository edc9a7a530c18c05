"""The layer schedule, a block against torch's own, and weights that depend on names alone."""

import math
from collections import Counter

import pytest
import torch
from helpers.tiny_prior import SMALL
from torch import nn

from minidalle.attention import layer_mask
from minidalle.transformer import Block, Transformer, init_weights, initial_value, layer_kinds


@pytest.mark.parametrize("n_layers", range(1, 70))
def test_layers_follow_the_rule_of_the_paper(n_layers):
    for i, kind in enumerate(layer_kinds(n_layers), start=1):  # the paper counts from 1
        want = "conv" if i == n_layers else "column" if (i - 2) % 4 == 0 else "row"
        assert kind == want
    assert Counter(layer_kinds(64)) == {"row": 47, "column": 16, "conv": 1}


def test_no_layers_are_refused():
    with pytest.raises(ValueError, match="got 0"):
        layer_kinds(0)


@pytest.mark.parametrize("kind", ["row", "column", "conv"])
def test_a_block_equals_torchs_encoder_layer_with_the_mask(kind):
    torch.manual_seed(0)
    block = Block(SMALL, kind)
    peer = nn.TransformerEncoderLayer(
        16, 2, 64, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    a, m = block.attention, block.mlp
    pairs = {
        peer.norm1: a.norm, peer.self_attn.out_proj: a.out,
        peer.norm2: m.norm, peer.linear1: m.up, peer.linear2: m.down,
    }  # fmt: skip
    for theirs, ours in pairs.items():
        theirs.load_state_dict(ours.state_dict())
    peer.self_attn.in_proj_weight.data = a.qkv.weight.data
    peer.self_attn.in_proj_bias.data = a.qkv.bias.data
    x = torch.randn(3, 22, 16)
    want = peer(x, src_mask=~layer_mask(kind, 6, 4, 3))  # torch marks what is hidden
    torch.testing.assert_close(block(x), want, atol=1e-5, rtol=1e-5)


def test_checkpointing_runs_every_block_twice_and_changes_no_gradient():
    x, grads, runs = torch.randn(2, 22, 16), [], []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model, calls = Transformer(SMALL), []
        model.checkpointing = checkpointing
        for block in model.blocks:
            block.mlp.up.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        model(x).square().sum().backward()
        grads.append([p.grad for p in model.parameters()])
        runs.append(len(calls))
    torch.testing.assert_close(*grads)
    assert runs == [5, 10]


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.config, self.transformer = SMALL, Transformer(SMALL)
        self.table = nn.Embedding(300, 40)


def test_weights_start_as_designed():
    model = Model()
    init_weights(model)
    block = model.transformer.blocks[0]
    assert torch.equal(block.mlp.norm.weight, torch.ones(16))
    assert not any(p.any() for n, p in model.named_parameters() if n.endswith("bias"))
    for weight, std in [
        (model.table.weight, 0.02),
        (block.attention.qkv.weight, 0.02),
        (block.mlp.up.weight, 0.02),
        (block.attention.out.weight, 0.02 / math.sqrt(10)),
        (block.mlp.down.weight, 0.02 / math.sqrt(10)),
    ]:
        assert weight.std().item() == pytest.approx(std, rel=0.15)
        assert abs(weight.mean().item()) < 0.3 * std


def test_a_weight_depends_on_the_seed_and_its_name_alone():
    shape, name = torch.Size([4, 5]), "transformer.blocks.3.mlp.up.weight"
    first = initial_value(name, shape, seed=1, n_layers=5, residual=1.0)
    torch.randn(7)  # torch's own generator plays no part
    assert torch.equal(initial_value(name, shape, 1, 5, 1.0), first)
    assert not torch.equal(initial_value(name, shape, 2, 5, 1.0), first)
    assert not torch.equal(initial_value(name.replace("3", "4"), shape, 1, 5, 1.0), first)
    a, b = Model(), Model()
    init_weights(a, seed=3)
    init_weights(b, seed=3)
    torch.testing.assert_close(a.state_dict(), b.state_dict(), atol=0, rtol=0)
