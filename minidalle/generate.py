"""From a caption to images: sample image tokens one after another, and keep the best.

n samples, L caption tokens, N image tokens (grid**2), V image vocabulary.
Source: Ramesh et al. 2021, arXiv:2102.12092, section 2.6 (candidates and their choice) and figure
2d (image prompts); Ho and Salimans 2022, arXiv:2207.12598 (guidance, here on logits as in Gafni et
al. 2022, arXiv:2203.13131); Holtzman et al. 2020, arXiv:1904.09751 (nucleus).
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from tqdm import tqdm

from minidalle import published
from minidalle.models import load
from minidalle.tokenizer import PAD


@torch.no_grad()
def sample(
    prior: nn.Module,
    text: Sequence[int] | Tensor,
    n: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    guidance: float = 1.0,
    prompt: Tensor | None = None,
    generator: Generator | None = None,
    use_cache: bool = True,
    compile: bool = False,
) -> Tensor:
    """Sample the image tokens of n images from any prior.

    text: the ids of one caption, or (n, L) int64 padded with PAD, a caption for each image.
    temperature: divides the logits; 0 always takes the likeliest token. top_k, top_p: of what the
    temperature leaves, sample from the k likeliest, or from the fewest that together have
    probability p; both in that order. guidance: s makes the logits u + s (c - u), u those of the
    empty caption; 1 is off. prompt: (p,) or (n, p) int64, tokens to keep, PAD where one is drawn;
    what is kept behind a drawn cell is copied when its turn comes, unseen by the cells before it.
    compile: fuse the small steps of each layer; the first call then takes a minute longer.

    Every image uses up N numbers of `generator`, so on a CPU generator one call with n = 8 and
    two calls with n = 4 sample the same images.
    Returns (n, grid, grid) int64. Raises ValueError for a value that makes no sense.
    """
    check_options(n, temperature, top_k, top_p, guidance)
    cells, device = prior.grid**2, next(prior.parameters()).device
    text = _captions(text, n, prior.caption_len, prior.text_vocab).to(device)
    prompt = _prompt(prompt, n, cells, prior.image_vocab)
    p = int((prompt != PAD).all(0).int().cumprod(0).sum())  # kept cells before any drawn one
    prompt = prompt.to(device)
    captions, guided = len(text), guidance != 1

    # The random numbers come first, so that they do not depend on how the logits are computed.
    where = generator.device if generator else "cpu"
    draws = torch.rand(n, cells, generator=generator, device=where).to(device)
    tokens = F.pad(prompt, (0, cells - prompt.shape[1]), value=PAD).expand(n, -1).clone()  # (n, N)

    # One caption for all images shares its prompt; guidance adds a second half of empty captions.
    prompt = prompt[:, :p]
    prompt = prompt[:, None] if captions > 1 else prompt[None]  # (captions or 1, images or 1, p)
    if guided:
        text = torch.cat([text, prior.null_text(captions)])
        prompt = torch.cat([prompt, prompt]) if len(prompt) > 1 else prompt
    decoder = prior.decoder(text, n // captions, prompt, cached=use_cache, compile=compile)

    for cell in tqdm(range(p, cells), "tokens", leave=False, delay=2, disable=None):
        last = tokens[:, cell - 1] if cell else None
        if guided and last is not None:
            last = torch.cat([last, last])
        logits = guide(decoder.step(last).view(1 + guided, n, -1), guidance)  # (n, V)
        token = draw(logits, draws[:, cell], temperature, top_k, top_p)
        tokens[:, cell] = torch.where(tokens[:, cell] == PAD, token, tokens[:, cell])
    return tokens.unflatten(1, (prior.grid, prior.grid))


def guide(logits: Tensor, guidance: float) -> Tensor:
    """Push logits (2, n, V), of the caption and of none, away from none; (1, n, V) are kept.

    Returns (n, V), u + guidance * (c - u).
    """
    if len(logits) == 1:
        return logits[0]
    return logits[1] + guidance * (logits[0] - logits[1])


def restrict(logits: Tensor, top_k: int | None = None, top_p: float | None = None) -> Tensor:
    """Return logits (n, V) with -inf outside the top_k likeliest and the top_p nucleus.

    Of equal logits the lower ids come first, so exactly top_k are left. The nucleus holds the
    fewest tokens that together have probability top_p or more.
    """
    if top_k is None and top_p is None:
        return logits
    ordered, ids = logits.sort(dim=-1, descending=True, stable=True)
    if top_k is not None:
        ordered[:, top_k:] = float("-inf")
    if top_p is not None and top_p < 1:
        p = ordered.softmax(-1)
        before = p.cumsum(-1) - p  # probability of all likelier tokens
        before[:, 0] = -1  # the likeliest stays, however small top_p
        ordered = ordered.masked_fill(before >= top_p, float("-inf"))
    return torch.empty_like(logits).scatter_(-1, ids, ordered)


def draw(
    logits: Tensor,
    uniform: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Tensor:
    """Draw one token per row of logits (n, V) with a uniform number (n,) in [0, 1) each.

    Inverts the cumulative distribution: the token does not depend on the other rows.
    Returns (n,) int64.
    """
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits.double() - logits.amax(-1, keepdim=True)  # else a small temperature overflows
    logits = restrict(logits / temperature, top_k, top_p)
    cumulative = logits.softmax(-1).cumsum(-1)  # (n, V)
    target = uniform.double()[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True)[:, 0]


def check_options(
    n: int, temperature: float, top_k: int | None, top_p: float | None, guidance: float
) -> None:
    """Raise ValueError for an option of `sample` that makes no sense."""
    for name, value, fits, wanted in (
        ("n", n, n >= 1, "1 or more"),
        ("temperature", temperature, 0 <= temperature < float("inf"), "0 or more"),
        ("top_k", top_k, top_k is None or top_k >= 1, "1 or more"),
        ("top_p", top_p, top_p is None or 0 < top_p <= 1, "in (0, 1]"),
        ("guidance", guidance, abs(guidance) < float("inf"), "a finite number"),
    ):
        if not fits:
            raise ValueError(f"{name} must be {wanted}, got {value}")


def _captions(text: Sequence[int] | Tensor, n: int, length: int, vocab: int) -> Tensor:
    """Return captions (1 or n, length) int64, padded with PAD."""
    text = torch.as_tensor(text)
    text = text if text.numel() else text.long()  # an empty list makes a float tensor
    if text.ndim == 1 and len(text) <= length:
        text = F.pad(text, (0, length - len(text)), value=PAD)[None]
    if text.ndim != 2 or text.shape[1] != length or len(text) not in (1, n):
        shape = tuple(text.shape)
        raise ValueError(
            f"text must be one caption of up to {length} ids or ({n}, {length}), got shape {shape}"
        )
    return _check_ids("text", text, vocab, PAD)


def _prompt(prompt: Tensor | None, n: int, cells: int, vocab: int) -> Tensor:
    """Return the kept tokens (1 or n, p) int64, PAD where one is to be drawn."""
    if prompt is None:
        return torch.zeros(1, 0, dtype=torch.int64)
    prompt = prompt[None] if prompt.ndim == 1 else prompt
    if prompt.ndim != 2 or len(prompt) not in (1, n) or prompt.shape[1] > cells:
        raise ValueError(f"prompt must be (p,) or ({n}, p <= {cells}), got {tuple(prompt.shape)}")
    return _check_ids("prompt", prompt, vocab, PAD)


def _check_ids(name: str, ids: Tensor, vocab: int, least: int) -> Tensor:
    if ids.is_floating_point():
        raise ValueError(f"{name} ids must be integers, got {ids.dtype}")
    if ids.numel() and not least <= ids.min() <= ids.max() < vocab:
        raise ValueError(f"{name} ids must be below {vocab}, got {ids.min()} to {ids.max()}")
    return ids


class Pipeline:
    """All stages of one run together: a caption goes in, images come out, the best first.

    tokenizer: of the prior's captions. codebook: what turns tokens into images. prior: what
    `sample` draws from. reranker: has score(captions, images), or None.
    """

    def __init__(self, tokenizer, codebook: nn.Module, prior: nn.Module, reranker=None):
        self.tokenizer, self.codebook, self.prior = tokenizer, codebook, prior
        self.reranker = reranker

    @classmethod
    def load(
        cls,
        folder: str | Path,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        weights: str | Path | None = None,
    ) -> "Pipeline":
        """Load the models of a run, such as runs/toy, or a published model by its name.

        dtype: of the prior's weights; bfloat16 halves the bytes that each token reads. weights:
        the folder with the files of a published model; None fetches them.
        Raises ValueError where a stage other than clip is missing, with the command that trains it.
        """
        if folder in published.CHECKPOINTS:
            return cls(*published.load(str(folder), weights, dtype, device))
        parts = [load(folder, stage, device) for stage in ("tokenizer", "dvae", "dalle")]
        parts[2].to(dtype)
        if (Path(folder) / "clip" / "model.safetensors").exists():
            parts.append(load(folder, "clip", device))
        return cls(*parts)

    def generate(
        self,
        caption: str,
        n: int = 1,
        candidates: int | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        guidance: float = 1.0,
        prompt: Tensor | None = None,
        generator: Generator | None = None,
        batch_size: int = 64,
        progress: bool = True,
        compile: bool = False,
        finished: Callable[[Tensor], object] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Sample `candidates` images (n by default) and return the n that the reranker likes best.

        prompt: (p,) image tokens to keep; other arguments as `sample`. Ctrl-C ends the sampling
        and keeps the finished batches; `finished` is called with all images after each batch.
        Returns images (n, 3, H, W) float32 in [0, 1] and their scores (n,), best first: the
        cosine of image and caption, NaN without a reranker. On the CPU, whatever the device.
        Raises ValueError for an empty or over-long caption, or candidates without a reranker.
        """
        check_options(n, temperature, top_k, top_p, guidance)
        if batch_size < 1:
            raise ValueError(f"batch_size must be positive, got {batch_size}")
        text, candidates = self.encode(caption), candidates or n
        if candidates < n or (candidates > n and self.reranker is None):
            why = "a trained clip is needed to choose" if candidates > n else "fewer than n"
            raise ValueError(f"{candidates} candidates for n={n} images: {why}")
        options = dict(temperature=temperature, top_k=top_k, top_p=top_p, guidance=guidance)
        options |= dict(prompt=prompt, generator=generator, compile=compile)
        # Draw in batches; what is finished stays when Ctrl-C ends it.
        images: list[Tensor] = []
        bar = tqdm(total=candidates, desc="images", disable=None if progress else True)
        try:
            with bar:
                for start in range(0, candidates, batch_size):
                    size = min(batch_size, candidates - start)
                    images.append(self.decode(sample(self.prior, text, size, **options)))
                    bar.update(size)
                    if finished:
                        finished(torch.cat(images))
        except KeyboardInterrupt:
            if not images:
                raise
        # Keep what the reranker likes best.
        drawn = torch.cat(images)
        scores = self.score([caption], drawn)
        best = scores.argsort(descending=True, stable=True)[:n]
        return drawn[best], scores[best]

    def score(self, captions: list[str], images: Tensor) -> Tensor:
        """Score images (n, 3, H, W) against one or n captions: (n,), NaN without a reranker."""
        if self.reranker is None:
            return torch.full((len(images),), float("nan"))
        return self.reranker.score(captions, images)

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        """Turn tokens (n, grid, grid) into images (n, 3, H, W) float32 in [0, 1] on the CPU."""
        return self.codebook.decode(tokens).float().cpu()

    def encode(self, caption: str) -> list[int]:
        """Return the ids of a caption. Raises ValueError where it is empty or too long."""
        ids, most = self.tokenizer.encode(caption), self.prior.caption_len
        if not ids:
            raise ValueError(f"the caption is empty: {caption!r}")
        if len(ids) > most:
            raise ValueError(f"the caption has {len(ids)} tokens, at most {most} fit: {caption!r}")
        return ids
