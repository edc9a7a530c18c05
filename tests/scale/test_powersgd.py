"""PowerSGD on one process; tests/scale/test_processes.py has it on several."""

import math
from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook

from minidalle.scale.powersgd import Compression, Compressor, from_169, to_169

# A matrix of two padded rows, queries with keys and values, and a bias.
LAYOUT = [
    ("up.weight", 96, torch.Size((10, 8))),
    ("attention.qkv.weight", 192, torch.Size((24, 8))),
    ("up.bias", 10, torch.Size((10,))),
]


@pytest.fixture(scope="module")
def group():
    """A group of this process, one for all tests: gloo once aborted where many came and went."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def gradient(step: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(step)
    flat = torch.randn(298, generator=g)
    flat[80:96] = 0  # padding
    return flat


def compressor(group, q="warm", rank=3, whole=0) -> Compressor:
    return Compressor(LAYOUT, group, rank, whole=whole, q=q)


def matrices(flat: torch.Tensor) -> list[torch.Tensor]:
    return [flat[:80].view(10, 8), *flat[96:288].view(3, 8, 8)]


def test_a_warm_start_is_that_of_torch(group):
    ours, state = compressor(group), PowerSGDState(group, 3, start_powerSGD_iter=2)
    state.iter, state.min_compression_rate = 2, 0.0

    class Bucket:
        """What torch's hook asks of the gradients of a DDP model."""

        def __init__(self, flat):
            self.buffer, self.gradients = lambda: flat, lambda: [m for m in matrices(flat)]
            self.index, self.is_last = lambda: 0, lambda: True

    state.p_memory_dict[0] = torch.zeros(3 * (10 + 3 * 8))
    drawn = ours._draw(matrices(gradient(0)))
    state.q_memory_dict[0] = torch.cat([q.flatten() for q in drawn])
    for step in range(6):
        mine = gradient(step)
        theirs = torch.cat([m.flatten() for m in matrices(mine)])
        flat = torch.cat([theirs[:80], torch.zeros(16), theirs[80:]])
        powerSGD_hook(state, Bucket(flat)).wait()
        ours(mine)
        for a, b in zip(matrices(mine), matrices(flat), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("q", ["warm", "fixed"])
def test_what_is_sent_and_what_is_kept_is_what_came(q, group):
    send, came, sent = compressor(group, q), 0, 0
    for step in range(5):
        flat = gradient(step)
        came = came + flat
        send(flat)
        sent = sent + flat
        assert all(torch.linalg.matrix_rank(m) == 3 for m in matrices(flat))
    torch.testing.assert_close(sent + send.error, came)
    assert not send.error[80:96].any() and not send.error[288:].any()  # padding, bias: whole


@pytest.mark.parametrize("q", ["warm", "fixed"])
def test_full_rank_loses_nothing(q, group):
    send, flat = compressor(group, q, rank=100), gradient(0)
    send(flat)
    torch.testing.assert_close(flat, gradient(0), rtol=1e-3, atol=1e-4)
    assert send.error.abs().max() < 1e-4


def test_where_q_comes_from(group):
    kept = {}
    for q in ("warm", "fixed"):
        send, kept[q] = compressor(group, q), []
        for step in range(3):
            send(gradient(step))
            kept[q].append(send.q[0])
    assert torch.equal(kept["fixed"][0], kept["fixed"][2])
    orthonormal = kept["fixed"][0].T @ kept["fixed"][0]
    torch.testing.assert_close(orthonormal, torch.eye(3))
    assert not torch.allclose(kept["warm"][1], kept["warm"][2])


def test_the_first_updates_are_whole_and_a_bad_one_leaves_no_trace(group):
    send = compressor(group, whole=1)
    flat = gradient(0)
    send(flat)
    assert torch.equal(flat, gradient(0)) and send.error is None
    send(gradient(1))
    error, q = send.error.clone(), [x.clone() for x in send.q]
    bad = gradient(2)
    bad[100] = float("inf")
    send(bad)
    assert not bad.isfinite().all()
    assert torch.equal(send.error, error)
    assert all(torch.equal(a, b) for a, b in zip(send.q, q, strict=True))


def test_a_compression_is_saved_and_restored(group):
    one, two = (Compression([compressor(group)], "cpu") for _ in range(2))
    for step in range(2):
        one.blocks[0](gradient(step))
    two.load_state_dict(one.state_dict())
    sent = [gradient(2), gradient(2)]
    for kept, flat in zip((one, two), sent, strict=True):
        kept.blocks[0](flat)
    assert torch.equal(*sent)


def test_scales_are_divided_out_before_compression(group):
    plain, scaled = compressor(group), compressor(group)
    scaled.prepare = partial(torch.Tensor.div_, other=4.0)
    a, b = gradient(0), gradient(0) * 4
    plain(a), scaled(b)
    torch.testing.assert_close(a, b)


def rounded(x: float) -> float:
    """To nine bits of significand, ties to even, between 2**-59 and 16 (by hand)."""
    if abs(x) < 2.0**-59:  # good enough: no test value rounds up to it
        return 0.0
    exponent = math.floor(math.log2(abs(x)))
    unit = 2.0 ** (exponent - 9)
    return math.copysign(min(round(abs(x) / unit) * unit, 16 - 2**-6), x)


def test_the_sixteen_bit_format_of_the_paper():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(4000, generator=g) * 2.0 ** torch.randint(-62, 6, (4000,), generator=g)
    special = torch.tensor([0.0, 15.99, 16.0, -1e9, math.inf, -math.inf, 1e-30, 1.0, 1 + 2**-10])
    x = torch.cat([x, special])
    kept = from_169(to_169(x))
    assert to_169(x).dtype == torch.int16
    assert kept.tolist() == [rounded(v) if math.isfinite(v) else math.copysign(16 - 2**-6, v)
                             for v in x.tolist()]  # fmt: skip
    assert torch.equal(from_169(to_169(kept)), kept)


def test_short_errors_are_kept_in_half_the_memory_and_change_little(group):
    plain, short = compressor(group, "fixed"), Compressor(LAYOUT, group, 3, 0, 0, "fixed", True)
    for step in range(4):
        a, b = gradient(step), gradient(step)
        plain(a), short(b)
    assert short.error.dtype == torch.int16
    assert 0 < (a - b).norm() < 0.01 * a.norm()
