"""The real FID and inception score, by the Inception-v3 of the first papers, if it is at hand.

N pictures, S side in pixels. Features and weights are those of the package `torch-fidelity`, so
that numbers agree with the literature; nothing is downloaded.
Source: Heusel et al. 2017, arXiv:1706.08500; Obukhov et al. 2020, github.com/toshas/torch-fidelity.
"""

from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"


class _Pictures(Dataset):
    """Pictures as torch-fidelity wants them: (3, S, S) uint8, one by one."""

    def __init__(self, images: Tensor):
        self.images = images if images.dtype == torch.uint8 else (images * 255).round().byte()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Tensor:
        return self.images[i]


def find_weights(folder: str | Path | None = None) -> Path:
    """Return the file of Inception's weights in `folder`, or where torch.hub keeps checkpoints.

    Raises ValueError saying where to put it.
    """
    folder = Path(folder or Path(torch.hub.get_dir()) / "checkpoints")
    if not (folder / WEIGHTS).is_file():
        raise ValueError(
            f"FID needs Inception's weights: put {WEIGHTS} (91 MB, from the releases page of "
            f"github.com/toshas/torch-fidelity) into {folder}"
        )
    return folder / WEIGHTS


def inception_metrics(
    true: Tensor, drawn: Tensor, device: str = "cpu", folder: str | Path | None = None
) -> dict[str, float]:
    """Return "fid" between true and drawn pictures, and "inception_score" of the drawn ones.

    Both (N, 3, S, S), uint8 or in [0, 1]. FID falls with N: compare equal numbers of pictures
    only (the paper uses 30,000).
    Raises ValueError where torch-fidelity or its weights are not on this machine.
    """
    try:
        fidelity = import_module("torch_fidelity")
    except ImportError:
        raise ValueError(
            "FID needs the package torch-fidelity: pip install torch-fidelity"
        ) from None
    found = fidelity.calculate_metrics(
        input1=_Pictures(drawn), input2=_Pictures(true), isc=True, fid=True, verbose=False,
        cuda=torch.device(device).type == "cuda",
        feature_extractor_weights_path=str(find_weights(folder)),
    )  # fmt: skip
    return {
        "fid": found["frechet_inception_distance"],
        "inception_score": found["inception_score_mean"],
    }
