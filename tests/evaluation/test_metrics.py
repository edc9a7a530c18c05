"""Metrics against closed forms, loops, simulations and other libraries."""

import itertools
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from minidalle.dvae import logit_laplace_nll, map_pixels
from minidalle.evaluation import metrics
from minidalle.evaluation.metrics import (
    accuracy,
    best_of,
    confusion,
    frechet_distance,
    inception_score,
)


def test_wilson_solves_its_equation():
    """The ends are the shares p at which the seen share lies 1.96 standard errors away."""
    for hits, n in ((0, 10), (3, 10), (50, 100), (99, 100), (256, 256)):
        share = hits / n
        for end in metrics.wilson(share, n):
            gap = (share - end) ** 2 - metrics.Z95**2 * end * (1 - end) / n
            assert gap == pytest.approx(0, abs=1e-12)
    low, high = metrics.wilson(0.5, 100)
    assert (round(low, 4), round(high, 4)) == (0.4038, 0.5962)
    assert metrics.wilson(0, 5)[0] == 0 and metrics.wilson(1, 5)[1] == 1


def test_an_interval_by_clusters_holds_what_it_promises():
    """Eight pairs of 64 captions, each pair with a chance of its own: 95% must mean 95%."""
    g = torch.Generator().manual_seed(0)
    pairs = [i // 64 for i in range(512)]
    inside = {"clustered": 0, "naive": 0}
    for _ in range(300):
        chances = torch.rand(8, generator=g).sqrt()  # mean 2/3, from near 0 to 1
        values = (torch.rand(8, 64, generator=g) < chances[:, None]).flatten().tolist()
        for name, clusters in (("clustered", pairs), ("naive", None)):
            found = metrics.estimate(values, clusters)
            inside[name] += found["low"] <= 2 / 3 <= found["high"]
    assert inside["clustered"] >= 0.93 * 300 and inside["naive"] < 0.6 * 300, inside


def test_an_interval_by_clusters_of_one_is_nearly_wilson_s():
    values = [1] * 300 + [0] * 100
    plain, clustered = metrics.estimate(values), metrics.estimate(values, range(400))
    assert plain["share"] == clustered["share"] == 0.75 and clustered["clusters"] == 400
    assert plain["low"] == pytest.approx(clustered["low"], abs=2e-3)
    one = metrics.estimate([1, 0, 1], ["a"] * 3)  # one pair says nothing about others
    assert one["low"] == 0 and one["high"] == 1
    assert metrics.estimate([1, 1, 1, 1], "aabb")["high"] == 1


def test_student_s_t_is_the_table_s():
    for freedom, want in {1: 12.706, 2: 4.303, 3: 3.182, 7: 2.365, 55: 2.004}.items():
        assert metrics.student95(freedom) == pytest.approx(want, rel=0.01)


def test_accuracy_counts_what_was_asked_for():
    found = {"shape": ["star", "ring", "star"], "place": ["top", "top", "low"]}
    wanted = [
        {"shape": "star", "place": "top"},
        {"shape": "ring"},
        {"shape": "ring", "place": "low"},
    ]
    marks = accuracy(found, wanted)
    assert marks["shape"]["share"] == 2 / 3 and marks["shape"]["n"] == 3
    assert marks["place"]["share"] == 1 and marks["place"]["n"] == 2
    assert marks["exact"]["share"] == 2 / 3
    assert marks["exact"]["low"] < 2 / 3 < marks["exact"]["high"]


def test_confusion_counts_pairs():
    table = confusion(["a", "b", "b", "c"], ["a", "a", "b", "b"])
    assert table == {
        "a": {"a": 1, "b": 1, "c": 0}, "b": {"a": 0, "b": 1, "c": 1}, "c": {"a": 0, "b": 0, "c": 0},
    }  # fmt: skip


def test_best_of_k_is_the_mean_over_all_subsets():
    g = torch.Generator().manual_seed(0)
    scores, values = torch.rand(3, 7, generator=g), torch.rand(3, 7, generator=g)
    for k in range(1, 8):
        total = []
        for s, v in zip(scores, values, strict=True):
            for subset in itertools.combinations(range(7), k):
                total.append(v[max(subset, key=lambda i, s=s: s[i])].item())
        assert best_of(scores, values, k) == pytest.approx(sum(total) / len(total), rel=1e-6)


def test_best_of_grows_to_512_without_overflow():
    scores = torch.rand(2, 1024, generator=torch.Generator().manual_seed(0))
    curve = [best_of(scores, scores, k) for k in metrics.powers_of_two(512)]
    assert curve == sorted(curve) and len(curve) == 10
    assert curve[-1] == pytest.approx(512 / 513, abs=0.01)  # of uniform draws


def test_frechet_distance_of_one_dimension_and_of_diagonals():
    def gauss(mean, std):
        return torch.tensor(mean).double(), torch.tensor(std).double().square().diag()

    assert frechet_distance(gauss([1.0], [2.0]), gauss([4.0], [6.0])) == pytest.approx(9 + 16)
    a, b = gauss([0.0, 1.0, 2.0], [1.0, 2.0, 0.0]), gauss([1.0, 1.0, 0.0], [3.0, 2.0, 5.0])
    want = 1 + 0 + 4 + (1 - 3) ** 2 + 0 + 25  # the third direction of a is flat: singular
    assert frechet_distance(a, b) == pytest.approx(want)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_does_not_turn_with_the_axes():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(50, 6, generator=g).double() @ torch.randn(6, 6, generator=g).double()
    y = torch.randn(40, 6, generator=g).double() + 1
    turn = torch.linalg.qr(torch.randn(6, 6, generator=g).double()).Q
    straight = frechet_distance(metrics.moments(x), metrics.moments(y))
    turned = frechet_distance(metrics.moments(x @ turn), metrics.moments(y @ turn))
    assert turned == pytest.approx(straight)
    assert frechet_distance(metrics.moments(y), metrics.moments(x)) == pytest.approx(straight)


def test_frechet_distance_equals_the_matrix_square_root():
    """tr((S1 S2)^1/2) by the eigenvalues of the unsymmetric product, as most programs take it."""
    g = torch.Generator().manual_seed(1)
    a = metrics.moments(torch.randn(30, 5, generator=g) * torch.tensor([1.0, 2, 3, 4, 5]))
    b = metrics.moments(torch.randn(30, 5, generator=g) + 0.5)
    cross = torch.linalg.eigvals(a[1] @ b[1]).real.clamp(min=0).sqrt().sum()
    want = (a[0] - b[0]).square().sum() + a[1].trace() + b[1].trace() - 2 * cross
    assert frechet_distance(a, b) == pytest.approx(want.item())


def test_moments_are_numpy_s():
    x = torch.rand(9, 4, generator=torch.Generator().manual_seed(0))
    mean, covariance = metrics.moments(x)
    assert np.allclose(mean, np.mean(x.double().numpy(), 0))
    assert np.allclose(covariance, np.cov(x.double().numpy(), rowvar=False))


def test_inception_score_in_closed_form():
    assert inception_score(torch.full((5, 4), 0.25)) == pytest.approx(1)  # knows nothing
    assert inception_score(torch.eye(4).repeat(3, 1)) == pytest.approx(4)  # sure, and varied
    assert inception_score(torch.eye(4)[:1].repeat(6, 1)) == pytest.approx(1)  # sure, all alike
    p = torch.tensor([[0.9, 0.1], [0.3, 0.7]]).double()
    kl = sum(
        q * math.log(q / m) for row in p.tolist() for q, m in zip(row, (0.6, 0.4), strict=True)
    )
    assert inception_score(p) == pytest.approx(math.exp(kl / 2))
    with pytest.raises(ValueError, match="softmax"):
        inception_score(torch.tensor([[2.0, 1.0]]))


def test_blur_is_a_gaussian_by_its_moments():
    x = torch.zeros(1, 3, 41, 41)
    x[..., 20, 20] = 1
    for radius in (1, 2, 4):
        y = metrics.gaussian_blur(x, radius)[0, 1].double()
        at = torch.arange(41).double() - 20
        assert y.sum().item() == pytest.approx(1, abs=1e-4)
        spread = (y.sum(0) * at**2).sum().sqrt().item()
        assert spread == pytest.approx(radius, rel=0.01)
        assert y[20, 23].item() == pytest.approx(y[23, 20].item())
    assert metrics.gaussian_blur(x, 0) is x
    flat = torch.full((1, 3, 8, 8), 0.3)
    assert torch.allclose(metrics.gaussian_blur(flat, 8), flat)
    with pytest.raises(ValueError, match="-1"):
        metrics.gaussian_blur(x, -1)


def test_blur_equals_scipy_s():
    ndimage = pytest.importorskip("scipy.ndimage")
    x = torch.rand(1, 3, 20, 24, generator=torch.Generator().manual_seed(0))
    want = ndimage.gaussian_filter(x.numpy(), (0, 0, 2, 2), mode="nearest", truncate=4)
    assert torch.allclose(metrics.gaussian_blur(x, 2), torch.from_numpy(want), atol=1e-6)


@pytest.mark.parametrize(("mu", "log_b"), [(0.0, 0.0), (1.7, -2.0), (-2.2, -6.0), (9.0, 1.0)])
def test_the_256_values_of_a_pixel_have_probability_one(mu, log_b):
    values = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    shape = torch.ones(1, 1, 16, 16)
    nats = metrics.pixel_nats(values, mu * shape, log_b * shape)
    assert nats.neg().exp().sum().item() == pytest.approx(1, abs=1e-12)


def test_pixel_nats_are_the_density_times_the_width_of_a_value():
    values = torch.arange(1, 255, dtype=torch.uint8).view(1, 1, 2, 127)
    mu, log_b = torch.full(values.shape, 0.4).double(), torch.full(values.shape, 0.5).double()
    density = logit_laplace_nll(map_pixels(values.double() / 255), mu, log_b)
    want = density - math.log(0.8 / 255)
    assert torch.allclose(metrics.pixel_nats(values, mu, log_b), want, atol=2e-3)


def test_psnr_and_ssim_by_their_formulas():
    g = torch.Generator().manual_seed(0)
    x = torch.rand(2, 3, 14, 13, generator=g)
    y = (x + 0.1 * torch.randn(x.shape, generator=g)).clamp(0, 1)
    each = [10 * math.log10(1 / (a - b).square().mean().item()) for a, b in zip(x, y, strict=True)]
    assert metrics.psnr(y, x) == pytest.approx(sum(each) / 2, rel=1e-5)
    assert metrics.ssim(x, x) == pytest.approx(1, abs=1e-5)
    at = np.arange(-5, 6)
    window = np.exp(-(at[:, None] ** 2 + at**2) / (2 * 1.5**2))
    window /= window.sum()
    found = []
    both = (z.double().numpy().reshape(6, 14, 13) for z in (x, y))
    for a, b in zip(*both, strict=True):
        for i, j in itertools.product(range(4), range(3)):
            p, q = a[i : i + 11, j : j + 11], b[i : i + 11, j : j + 11]
            mp, mq = (window * p).sum(), (window * q).sum()
            vp, vq = (window * (p - mp) ** 2).sum(), (window * (q - mq) ** 2).sum()
            shared = (window * (p - mp) * (q - mq)).sum()
            top = (2 * mp * mq + 1e-4) * (2 * shared + 9e-4)
            found.append(top / ((mp**2 + mq**2 + 1e-4) * (vp + vq + 9e-4)))
    assert metrics.ssim(x, y) == pytest.approx(np.mean(found), rel=1e-4)


def test_the_nearest_by_pixels_by_a_loop():
    g = torch.Generator().manual_seed(0)
    training = torch.randint(256, (30, 3, 4, 4), generator=g, dtype=torch.uint8)
    samples = training[[4, 7]] / 255 + 0.01
    distance, index = metrics.nearest_pixels(samples, training, k=2)
    assert index[:, 0].tolist() == [4, 7]
    assert torch.allclose(distance[:, 0], torch.full((2,), 0.01), atol=1e-4)
    for row, sample in zip(distance, samples, strict=True):
        loop = sorted((sample - t / 255).square().mean().sqrt().item() for t in training)
        assert row.tolist() == pytest.approx(loop[:2], abs=1e-4)


def test_nearest_features_are_ranked_by_cosine():
    training = torch.eye(3)
    cosine, index = metrics.nearest_features(torch.tensor([[0.6, 0.0, 0.8]]), training, k=2)
    assert index.tolist() == [[2, 0]] and cosine.tolist() == [pytest.approx([0.8, 0.6])]


def test_a_missing_package_or_weight_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(ValueError, match="pip install torch-fidelity"):
        metrics.inception_metrics(torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8))
    monkeypatch.setitem(sys.modules, "torch_fidelity", SimpleNamespace())
    with pytest.raises(ValueError, match=f"put {metrics.INCEPTION} .* into {tmp_path}"):
        metrics.find_inception(tmp_path)


def test_the_package_is_given_drawn_and_true_images(tmp_path, monkeypatch):
    def calculate_metrics(input1, input2, **options):
        assert options["feature_extractor_weights_path"] == str(tmp_path / metrics.INCEPTION)
        assert options["fid"] and options["isc"] and not options["cuda"]
        assert input1[0].dtype == torch.uint8 and input1[0].shape == (3, 8, 8)
        assert (len(input1), len(input2)) == (2, 3) and input1[1].unique().tolist() == [51]
        return {"frechet_inception_distance": 17.5, "inception_score_mean": 3.0}

    fake = SimpleNamespace(calculate_metrics=calculate_metrics)
    monkeypatch.setitem(sys.modules, "torch_fidelity", fake)
    (tmp_path / metrics.INCEPTION).write_bytes(b"")
    true, drawn = torch.zeros(3, 3, 8, 8, dtype=torch.uint8), torch.full((2, 3, 8, 8), 0.2)
    found = metrics.inception_metrics(true, drawn, folder=tmp_path)
    assert found == {"fid": 17.5, "inception_score": 3.0}
