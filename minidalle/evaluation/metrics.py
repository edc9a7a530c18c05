"""How good are the images? Numbers with their uncertainty, as functions of what was read or seen.

N images, F features, C captions, P candidates a caption, S side in pixels.
Source: Ramesh et al. 2021, arXiv:2102.12092, section 3.1 and figure 9; Wilson 1927, and Korn and
Graubard 1998 (intervals); Heusel et al. 2017, arXiv:1706.08500 (Fréchet distance); Salimans et al.
2016, arXiv:1606.03498 (inception score); Wang et al. 2004 (SSIM).
"""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from importlib import import_module
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from minidalle.dvae import map_pixels

Z95 = 1.959963984540054  # 97.5th percentile of the standard normal distribution
BLUR_RADII = (0, 1, 2, 4, 8)


def wilson(share: float, n: float) -> tuple[float, float]:
    """Return Wilson's 95% interval for a share seen in n independent trials.

    Unlike share +- 1.96 standard errors it stays in [0, 1], and is right at 0 and 1 too.
    Raises ValueError unless 0 <= share <= 1 and n > 0.
    """
    if not 0 <= share <= 1 or n <= 0:
        raise ValueError(f"share must be in [0, 1] and n positive, got {share=} {n=}")
    centre = (share + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 / (1 + Z95**2 / n) * math.sqrt(share * (1 - share) / n + Z95**2 / (4 * n * n))
    # At 0 and 1 one end is exact; rounding must not move it.
    return (0.0 if share == 0 else centre - half), (1.0 if share == 1 else centre + half)


def estimate(
    values: Sequence[float], clusters: Sequence[Hashable] | None = None
) -> dict[str, float]:
    """Return the mean of values in [0, 1] with its 95% interval, ready for JSON.

    clusters: what each value belongs to. Captions of one pair of shape and colour succeed or fail
    together, so many of them say less than their number: the interval is Wilson's for as many
    independent values as would vary like these, with Student's t for the number of clusters.
    Without clusters, or where all values are 0 or all are 1, every value counts as independent.
    """
    n = len(values)
    share = min(math.fsum(values) / n, 1.0)
    n_effective: float = n
    if clusters is not None:
        # How much would the mean move with other clusters? Sum what each lies off, squared.
        off: dict[Hashable, float] = {}
        for value, cluster in zip(values, clusters, strict=True):
            off[cluster] = off.get(cluster, 0.0) + value - share
        groups = len(off)
        variance = sum(x * x for x in off.values()) / n**2 * groups / max(groups - 1, 1)
        if 0 < share < 1 and variance:
            n_effective = min(share * (1 - share) / variance, n)
        n_effective *= (Z95 / student95(groups - 1)) ** 2
    low, high = wilson(share, n_effective) if n_effective else (0.0, 1.0)
    found = {"share": share, "low": low, "high": high, "n": n}
    return found if clusters is None else found | {"clusters": groups}


def student95(freedom: int) -> float:
    """Return the 97.5th percentile of Student's t within 1%, by its expansion from 3 degrees on."""
    if freedom < 3:
        return {1: 12.706, 2: 4.303}.get(freedom, math.inf)
    z, v = Z95, freedom
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    )


def right(
    found: Mapping[str, Sequence[str]], wanted: Sequence[Mapping[str, str]]
) -> dict[str, list]:
    """Mark each attribute of each image: 1 right, 0 wrong, None where nothing was asked for.

    found maps an attribute to what was read, one an image; wanted has a dict for each image.
    "exact" is added: 1 where all that was asked for is right.
    """
    marks = {
        name: [int(a == w[name]) if name in w else None for a, w in zip(read, wanted, strict=True)]
        for name, read in found.items()
    }
    rows = zip(*marks.values(), strict=True)
    return marks | {"exact": [int(0 not in row) for row in rows]}


def accuracy(
    found: Mapping[str, Sequence[str]],
    wanted: Sequence[Mapping[str, str]],
    clusters: Sequence[Hashable] | None = None,
    mark: Callable = right,
) -> dict[str, dict[str, float]]:
    """Return, for each attribute and for "exact", the share of right answers and its interval.

    Arguments as `right`, which may be exchanged by `mark`, and `estimate`. An attribute that
    nothing asked for is left out.
    """
    accuracies = {}
    for name, marks in mark(found, wanted).items():
        asked = [i for i, mark in enumerate(marks) if mark is not None]
        if asked:
            groups = None if clusters is None else [clusters[i] for i in asked]
            accuracies[name] = estimate([marks[i] for i in asked], groups)
    return accuracies


def confusion(found: Sequence[str], wanted: Sequence[str]) -> dict[str, dict[str, int]]:
    """Count what became of what: table[wanted][found], with every name in every row, sorted."""
    names = sorted({*found, *wanted})
    table = {w: dict.fromkeys(names, 0) for w in names}
    for f, w in zip(found, wanted, strict=True):
        table[w][f] += 1
    return table


def best_of(scores: Tensor, values: Tensor, k: int) -> float:
    """Expect what the best-scored of k candidates is worth: the mean of `each_best_of`.

    Raises ValueError also where a score is NaN.
    """
    if scores.isnan().any():
        raise ValueError("a score is NaN: candidates cannot be ranked (is there a clip?)")
    return each_best_of(scores, values, k).mean().item()


def each_best_of(scores: Tensor, values: Tensor, k: int) -> Tensor:
    """Expect, for each caption, what the best-scored of k candidates is worth, over all subsets.

    scores, values (C, P): the reranker's score and the worth of each candidate of each caption.
    The candidate of rank r (0 is best) leads C(P - 1 - r, k - 1) of the C(P, k) subsets of size k,
    so every candidate counts and the estimate has no bias; k = 1 is the mean, k = P the best.
    Scores may be NaN for k = 1. Returns (C,) float64. Raises ValueError unless 1 <= k <= P.
    """
    P = scores.shape[1]
    if not 1 <= k <= P:
        raise ValueError(f"k must be between 1 and the {P} candidates there are, got {k}")
    ranks = scores.argsort(dim=1, descending=True, stable=True)
    ranked = values.double().gather(1, ranks)  # (C, P) best-scored first
    weights = [math.comb(P - 1 - r, k - 1) / math.comb(P, k) for r in range(P)]
    return ranked @ torch.tensor(weights, dtype=torch.float64)  # (C,)


def powers_of_two(most: int) -> list[int]:
    """1, 2, 4, … up to `most`: the horizontal axis of figure 9c."""
    return [2**i for i in range(most.bit_length()) if 2**i <= most]


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean (F,) and unbiased covariance (F, F) of features (N, F), in float64.

    Raises ValueError for fewer than two rows.
    """
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"features must be (2 or more, F), got {tuple(features.shape)}")
    features = features.double()
    return features.mean(0), torch.cov(features.T).reshape(features.shape[1], -1)


def frechet_distance(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> float:
    """Squared 2-Wasserstein distance of two Gaussians, each given as (mean, covariance).

    |m1 - m2|^2 + tr(S1 + S2 - 2 (S1^1/2 S2 S1^1/2)^1/2). The root is taken of a symmetric matrix,
    so no complex numbers appear, and singular covariances are welcome.
    """
    (m1, s1), (m2, s2) = a, b
    values, vectors = torch.linalg.eigh(s1)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T  # S1^1/2
    cross = torch.linalg.eigvalsh(root @ s2 @ root).clamp(min=0).sqrt().sum()
    distance = (m1 - m2).square().sum() + s1.trace() + s2.trace() - 2 * cross
    return max(distance.item(), 0.0)


def inception_score(probabilities: Tensor) -> float:
    """exp(mean KL(p(y | x) || p(y))): 1 when all images look alike, at most the classes.

    probabilities (N, classes), rows summing to 1. Raises ValueError when they do not.
    """
    p = probabilities.double()
    if not torch.allclose(p.sum(1), torch.ones(len(p), dtype=p.dtype), atol=1e-4):
        raise ValueError("rows must be probabilities that sum to 1; give the softmax of the logits")
    kl = torch.special.entr(p.mean(0)).sum() - torch.special.entr(p).sum(1).mean()
    return kl.exp().item()


def gaussian_blur(images: Tensor, radius: float) -> Tensor:
    """Blur images (N, 3, S, S) by a Gaussian of standard deviation `radius` pixels; 0 is none.

    The paper blurs both true images and samples, since a dVAE loses detail (section 3.1).
    Edges are repeated outwards. Raises ValueError for a negative radius.
    """
    if radius < 0:
        raise ValueError(f"radius must not be negative, got {radius}")
    if radius == 0:
        return images
    reach = math.ceil(4 * radius)
    at = torch.arange(-reach, reach + 1, dtype=images.dtype, device=images.device)
    window = torch.exp(-0.5 * (at / radius) ** 2)
    window = (window / window.sum()).expand(images.shape[1], 1, -1)  # (3, 1, 2 reach + 1)
    x = F.pad(images, (reach,) * 4, mode="replicate")
    x = F.conv2d(x, window[:, :, None], groups=len(window))
    return F.conv2d(x, window[..., None], groups=len(window))


def pixel_nats(images: Tensor, mu: Tensor, log_b: Tensor) -> Tensor:
    """-ln P of each 8-bit value under the logit-Laplace law, its density integrated over the value.

    images (N, 3, S, S) uint8; mu, log_b the same shape. Value v owns mapped pixels from v - 1/2 to
    v + 1/2; 0 and 255 own the tails too, so the 256 probabilities of a pixel sum to 1 and two
    dVAEs can be compared in bits. Returns nats, the same shape, float64.
    """
    v = images.double()
    low = torch.where(v > 0, torch.logit(map_pixels((v - 0.5) / 255)), -torch.inf)
    high = torch.where(v < 255, torch.logit(map_pixels((v + 0.5) / 255)), torch.inf)
    scale = torch.exp(-log_b.double())
    low, high = (low - mu) * scale, (high - mu) * scale  # of the standard Laplace law
    # Both ends on one side: exp(-near)(1 - exp(-width)) / 2, which never cancels.
    near = torch.maximum(low, -high)
    aside = -near + torch.log(-torch.expm1(low - high)) - math.log(2)
    astride = torch.log1p(-0.5 * (torch.exp(-high) + torch.exp(low)))
    return -torch.where(near > 0, aside, astride)


def psnr(images: Tensor, true: Tensor) -> float:
    """Return the mean peak signal-to-noise ratio in dB; both (N, 3, S, S) in [0, 1]."""
    error = (images - true).square().flatten(1).mean(1)  # (N,)
    return (-10 * error.clamp(min=1e-10).log10()).mean().item()


def ssim(images: Tensor, true: Tensor) -> float:
    """Return the mean structural similarity; both (N, 3, S, S) in [0, 1], S at least 11.

    Means, variances and covariance under an 11-pixel Gaussian window of deviation 1.5, as Wang et
    al. take them, on whole windows only; the mean over the three colours.
    """
    at = torch.arange(-5, 6, dtype=images.dtype, device=images.device)
    window = torch.exp(-0.5 * (at / 1.5) ** 2)
    kernel = torch.outer(window, window).expand(3, 1, 11, 11) / window.sum() ** 2

    def mean(x: Tensor) -> Tensor:
        return F.conv2d(x, kernel, groups=3)  # (N, 3, S - 10, S - 10)

    x, y = mean(images), mean(true)
    var_x, var_y = mean(images**2) - x**2, mean(true**2) - y**2
    covariance = mean(images * true) - x * y
    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * x * y + c1) * (2 * covariance + c2)
    return (similarity / ((x**2 + y**2 + c1) * (var_x + var_y + c2))).mean().item()


def nearest_pixels(samples: Tensor, training: Tensor, k: int = 1) -> tuple[Tensor, Tensor]:
    """Find the training images nearest to each sample by pixels: the check against copying.

    samples (N, 3, S, S) in [0, 1]; training (M, 3, S, S) uint8.
    Returns root mean squared differences (N, k), nearest first, and row numbers (N, k).
    """
    x = samples.flatten(1).float()
    parts = [torch.cdist(x, part.flatten(1).float() / 255) for part in training.split(4096)]
    distance, index = torch.cat(parts, 1).topk(k, largest=False)
    return distance / math.sqrt(x.shape[1]), index


def nearest_psnr(test: Tensor, training: Tensor) -> Tensor:
    """Say how near the nearest training image of each test image lies: could one learn by heart?

    test (N, 3, S, S), training (M, 3, S, S), both uint8. Returns dB (N,), 8-bit copies at 48 or so.
    """
    distance, _ = nearest_pixels(test / 255, training)  # (N, 1) root mean squared
    return -20 * distance[:, 0].clamp(min=1 / 255).log10()


def nearest_features(samples: Tensor, training: Tensor, k: int = 1) -> tuple[Tensor, Tensor]:
    """Find the training images nearest to each sample by the angle between features.

    Both are features of any length but zero, (N, F) and (M, F). Returns cosines (N, k), largest
    first, and row numbers (N, k).
    """
    cosine, index = (F.normalize(samples, dim=1) @ F.normalize(training, dim=1).T).topk(k)
    return cosine, index


INCEPTION = "weights-inception-2015-12-05-6726825d.pth"


def find_inception(folder: str | Path | None = None) -> Path:
    """Return the file of Inception's weights in `folder`, or where torch.hub keeps checkpoints.

    Raises ValueError, saying what to do, where it or the package torch-fidelity is missing.
    """
    try:
        import_module("torch_fidelity")
    except ImportError:
        raise ValueError("FID needs torch-fidelity: pip install torch-fidelity") from None
    folder = Path(folder or Path(torch.hub.get_dir()) / "checkpoints")
    if not (folder / INCEPTION).is_file():
        raise ValueError(
            f"FID needs Inception's weights: put {INCEPTION} (91 MB, from the releases page of "
            f"github.com/toshas/torch-fidelity) into {folder}"
        )
    return folder / INCEPTION


def inception_metrics(
    true: Tensor, samples: Tensor, device: str = "cpu", folder: str | Path | None = None
) -> dict[str, float]:
    """Return "fid" between true images and samples, and "inception_score" of the samples.

    Both (N, 3, S, S), uint8 or in [0, 1]. Features are those of torch-fidelity, as in the
    literature. FID falls with N: compare equal numbers of images only (the paper uses 30,000).
    Raises ValueError as `find_inception`.
    """
    weights = find_inception(folder)
    as_bytes = [x if x.dtype == torch.uint8 else (x * 255).round().byte() for x in (samples, true)]
    samples, true = (TensorList(x) for x in as_bytes)
    found = import_module("torch_fidelity").calculate_metrics(
        input1=samples, input2=true, isc=True, fid=True, verbose=False,
        cuda=torch.device(device).type == "cuda", feature_extractor_weights_path=str(weights),
    )  # fmt: skip
    names = {"fid": "frechet_inception_distance", "inception_score": "inception_score_mean"}
    return {ours: found[theirs] for ours, theirs in names.items()}


class TensorList(torch.utils.data.Dataset):
    """Images one by one, (3, S, S) uint8, as torch-fidelity wants them."""

    def __init__(self, images: Tensor):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Tensor:
        return self.images[i]
