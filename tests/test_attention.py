"""Masks against a drawing and a loop; every way to execute them against the plain one."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from minidalle.attention import (
    KINDS,
    attend,
    causal_mask,
    column_mask,
    conv_mask,
    gathered,
    layer_mask,
    pick_method,
    row_mask,
)
from minidalle.attention.dense import dense_mask

# Figure 11 of the paper: 6 text states, a grid of 4 x 4 image states, a kernel of 3.
FIGURE_ROW = """
x..................... xx.................... xxx................... xxxx..................
xxxxx................. xxxxxx................ xxxxxxx............... xxxxxxxx..............
xxxxxxxxx............. xxxxxxxxxx............ xxxxxxxxxxx........... xxxxxx.xxxxx..........
xxxxxx..xxxxx......... xxxxxx...xxxxx........ xxxxxx....xxxxx....... xxxxxx.....xxxxx......
xxxxxx......xxxxx..... xxxxxx.......xxxxx.... xxxxxx........xxxxx... xxxxxx.........xxxxx..
xxxxxx..........xxxxx. xxxxxx...........xxxxx"""
FIGURE_COLUMN = """
x..................... xx.................... xxx................... xxxx..................
xxxxx................. xxxxxx................ xxxxxxx............... xxxxxx.x..............
xxxxxx..x............. xxxxxx...x............ xxxxxxx...x........... xxxxxx.x...x..........
xxxxxx..x...x......... xxxxxx...x...x........ xxxxxxx...x...x....... xxxxxx.x...x...x......
xxxxxx..x...x...x..... xxxxxx...x...x...x.... xxxxxxx...x...x...x... xxxxxx.x...x...x...x..
xxxxxx..x...x...x...x. xxxxxx...x...x...x...x"""
FIGURE_CONV = """
x..................... xx.................... xxx................... xxxx..................
xxxxx................. xxxxxx................ xxxxxxx............... xxxxxxxx..............
xxxxxx.xx............. xxxxxxx.xx............ xxxxxxxx.xx........... xxxxxxxxx.xx..........
xxxxxx.xxx.xx......... xxxxxxx.xxx.xx........ xxxxxx.x.xxx.xx....... xxxxxx..x.xxx.xx......
xxxxxx...x.xxx.xx..... xxxxxx....x.xxx.xx.... xxxxxx.....x.xxx.xx... xxxxxx......x.xxx.xx..
xxxxxx.......x.xxx.xx. xxxxxx........x.xxx.xx"""


def read(drawing: str) -> torch.Tensor:
    return torch.tensor([[c == "x" for c in row] for row in drawing.split()])


def test_masks_are_figure_11():
    assert torch.equal(row_mask(6, 4), read(FIGURE_ROW))
    assert torch.equal(column_mask(6, 4), read(FIGURE_COLUMN))
    assert torch.equal(conv_mask(6, 4, 3), read(FIGURE_CONV))


@pytest.mark.parametrize("text_len, grid, kernel", [(1, 1, 1), (3, 5, 3), (2, 6, 5), (4, 3, 7)])
def test_masks_are_the_loops(text_len, grid, kernel):
    half, length = kernel // 2, text_len + grid**2
    rules = {
        "row": lambda q, k: q - k <= grid,
        "column": lambda q, k: q % grid == k % grid,
        # Some cell of the kernel, up to `half` rows up and `half` columns aside, lies at k.
        "conv": lambda q, k: any(
            q - k == up * grid + aside or q - k == up * grid + aside + grid
            for up in range(half + 1)
            for aside in range(-half, half + 1)
            if 0 <= (q - k) // grid <= half
        ),
    }
    for kind, rule in rules.items():
        want = torch.zeros(length, length, dtype=torch.bool)
        for q in range(length):
            for k in range(q + 1):
                want[q, k] = k < text_len or rule(q - text_len, k - text_len)
        assert torch.equal(layer_mask(kind, text_len, grid, kernel), want), kind


def test_the_paper_sees_33_32_and_66_image_states():
    for kind, most in (("row", 33), ("column", 32), ("conv", 66)):
        image = layer_mask(kind, 256, 32, 11)[256:, 256:]
        assert image.sum(1).max() == most


@pytest.mark.parametrize(
    "sizes", [(0, 4, 3), (6, 0, 3), (6, -1, 3), (6, 4, 0), (6, 4, 2), (6, 4, -1)]
)
def test_sizes_without_a_mask_are_refused(sizes):
    with pytest.raises(ValueError, match="must be"):
        layer_mask("conv", *sizes)


def test_causal_mask_is_a_triangle():
    with pytest.raises(ValueError, match="length must be positive, got 0"):
        causal_mask(0)
    assert torch.equal(causal_mask(3), read("x.. xx. xxx"))


def stream(text_len, grid, dtype=torch.float32, head_dim=16):
    g = torch.Generator().manual_seed(0)
    shape = (3, 2, 2, text_len + grid**2, head_dim)
    return [x.requires_grad_() for x in torch.randn(shape, generator=g).to(dtype).unbind(0)]


def by_hand(q, k, v, mask):
    scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~mask, float("-inf"))
    return scores.softmax(-1) @ v


SIZES = [(6, 4, 3), (1, 1, 1), (2, 2, 5), (16, 8, 3), (5, 8, 11), (7, 6, 1)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("method", ["dense", "gathered", "auto"])
def test_every_method_equals_a_masked_softmax_forwards_and_backwards(kind, size, method):
    q, k, v = stream(*size[:2])
    want = by_hand(q, k, v, layer_mask(kind, *size))
    got = attend(q, k, v, kind, *size, method)
    towards = torch.linspace(-1, 1, want.numel()).view_as(want)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    wanted = torch.autograd.grad(want, (q, k, v), towards)
    torch.testing.assert_close(
        torch.autograd.grad(got, (q, k, v), towards), wanted, atol=1e-5, rtol=1e-5
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_gathered_equals_dense_at_the_size_of_the_paper(kind):
    q, k, v = stream(256, 32, head_dim=64)
    outputs = [attend(q, k, v, kind, 256, 32, 11, method) for method in ("dense", "gathered")]
    grads = [torch.autograd.grad(o.square().sum(), (q, k, v)) for o in outputs]
    torch.testing.assert_close(*outputs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(*grads, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["dense", "gathered"])
def test_bfloat16_is_right_within_its_precision(kind, method):
    q, k, v = stream(16, 8, torch.bfloat16)
    want = by_hand(q.float(), k.float(), v.float(), layer_mask(kind, 16, 8, 3))
    got = attend(q, k, v, kind, 16, 8, 3, method)
    assert got.dtype == torch.bfloat16
    wanted = torch.autograd.grad(want.sum(), (q, k, v))
    found = torch.autograd.grad(got.float().sum(), (q, k, v))
    torch.testing.assert_close(got.float(), want, atol=0.03, rtol=0.03)
    torch.testing.assert_close(found, wanted, atol=0.1, rtol=0.1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_equals_dense(kind):
    q, k, v = (x.detach() for x in stream(6, 4))
    got = attend(q, k, v, kind, 6, 4, 3, "flex")
    torch.testing.assert_close(got, by_hand(q, k, v, layer_mask(kind, 6, 4, 3)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", KINDS)
def test_flex_equals_dense_on_a_gpu_forwards_and_backwards(kind):
    q, k, v = (x.detach().cuda().requires_grad_() for x in stream(256, 32, head_dim=64))
    want, got = (attend(q, k, v, kind, 256, 32, 11, method) for method in ("dense", "flex"))
    torch.testing.assert_close(got, want, atol=1e-3, rtol=1e-3)
    grads = [torch.autograd.grad(o.sum(), (q, k, v)) for o in (got, want)]
    torch.testing.assert_close(*grads, atol=1e-2, rtol=1e-2)


def test_flex_refuses_to_train_on_a_cpu():
    with pytest.raises(ValueError, match="cannot train on cpu"):
        attend(*stream(6, 4), "row", 6, 4, 3, "flex")


@pytest.mark.parametrize("length", [1, 5, 6, 7, 13])
@pytest.mark.parametrize("method", ["dense", "gathered", "auto"])
def test_a_stream_that_stops_early_sees_the_same(length, method):
    q, k, v = stream(6, 4)
    whole = by_hand(q, k, v, conv_mask(6, 4, 3))
    part = attend(*(x[:, :, :length] for x in (q, k, v)), "conv", 6, 4, 3, method)
    torch.testing.assert_close(part, whole[:, :, :length])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["dense", "gathered"])
def test_gradients_reach_what_the_mask_shows_and_nothing_else(kind, method):
    q, k, v = stream(6, 4)
    mask = layer_mask(kind, 6, 4, 3)
    out = attend(q, k, v, kind, 6, 4, 3, method)
    for position in range(22):
        (grad,) = torch.autograd.grad(out[:, :, position].sum(), v, retain_graph=True)
        assert torch.equal(grad.abs().sum((0, 1, 3)) > 0, mask[position])


@pytest.mark.parametrize(
    "make, dtype", [(dense_mask, ()), (gathered._window_mask, (torch.float32,))]
)
def test_masks_made_while_sampling_also_serve_training(make, dtype):
    with torch.inference_mode():
        mask = make("row", 13, 3, 3, torch.device("cpu"), *dtype)
    assert not mask.is_inference()  # autograd refuses to keep those


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(3, 3, 3), (1, 2, 1), (2, 4, 3)])
def test_gathered_gradients_are_those_of_finite_differences(kind, size):
    qkv = stream(*size[:2], torch.float64, head_dim=2)
    assert torch.autograd.gradcheck(
        lambda *qkv: attend(*qkv, kind, *size, "gathered"), qkv, fast_mode=True
    )


@pytest.mark.parametrize("kind", KINDS)
def test_gathered_reads_the_strides_of_a_transformer(kind):
    x = torch.randn(2, 22, 3, 2, 16, generator=torch.Generator().manual_seed(0))
    qkv = x.requires_grad_().permute(2, 0, 3, 1, 4).unbind(0)
    want, got = by_hand(*qkv, layer_mask(kind, 6, 4, 3)), attend(*qkv, kind, 6, 4, 3, "gathered")
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    towards = torch.linspace(-1, 1, want.numel()).view(2, 22, 2, 16).transpose(1, 2)
    grads = [torch.autograd.grad(out, x, towards)[0] for out in (got, want)]
    torch.testing.assert_close(*grads, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_gathered_keeps_no_weights_for_the_way_back(kind):
    qkv, kept = stream(16, 8), {}
    mine = {x.untyped_storage().data_ptr() for x in qkv}

    def keep(x):
        if x.untyped_storage().data_ptr() not in mine:
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    attend(*qkv, kind, 16, 8, 3, "gathered")  # masks are made and kept
    mine.add(gathered._window_mask(kind, 16, 8, 3, qkv[0].device, qkv[0].dtype).data_ptr())
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        attend(*qkv, kind, 16, 8, 3, "gathered")
    text = qkv[0][:, :, :16]  # torch's attention keeps what text sees, a sum each, and the mask
    assert sum(kept.values()) <= 4 * (text.numel() + text[..., 0].numel() + 16**2)


@pytest.mark.parametrize("kind", ["column", "conv"])
def test_gathered_is_the_same_when_checkpointed_or_compiled(kind):
    def run(*qkv):
        return attend(*qkv, kind, 6, 4, 3, "gathered")

    qkv = stream(6, 4)
    want = run(*qkv)
    wanted = torch.autograd.grad(want.square().sum(), qkv)
    again = checkpoint(run, *qkv, use_reentrant=False)
    assert all(map(torch.equal, torch.autograd.grad(again.square().sum(), qkv), wanted))
    compiled = torch.compile(run, backend="eager")(*qkv)
    torch.testing.assert_close(compiled, want)
    torch.testing.assert_close(torch.autograd.grad(compiled.square().sum(), qkv), wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_gathered_runs_under_autocast(kind):
    qkv = stream(16, 8)
    want = by_hand(*qkv, layer_mask(kind, 16, 8, 3))
    with torch.autocast("cpu", torch.bfloat16):
        got = attend(*qkv, kind, 16, 8, 3, "gathered")
    torch.testing.assert_close(got, want, atol=0.03, rtol=0.03)
    wanted, found = (torch.autograd.grad(out.sum(), qkv) for out in (want, got))
    torch.testing.assert_close(found, wanted, atol=0.1, rtol=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_gathered_has_shapes_without_data(kind):
    q, k, v = (x.detach().to("meta").requires_grad_() for x in stream(6, 4))
    out = attend(q, k, v, kind, 6, 4, 3, "gathered")
    out.sum().backward()
    assert out.shape == q.grad.shape == k.grad.shape == v.grad.shape == q.shape


def test_gathered_refuses_second_derivatives():
    q, k, v = stream(6, 4)
    out = attend(q, k, v, "conv", 6, 4, 3, "gathered")
    with pytest.raises(RuntimeError, match="inplace"):
        torch.autograd.grad(out.square().sum(), q, create_graph=True)


def test_auto_is_dense_when_small_gathered_on_a_cpu_and_flex_on_a_gpu():
    assert pick_method(96, torch.device("cpu")) == "dense"
    assert pick_method(1280, torch.device("cpu")) == "gathered"
    assert pick_method(1280, torch.device("cuda")) == "flex"
