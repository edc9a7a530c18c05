"""From a caption to pictures: draw image tokens one after another, and keep the best.

n samples, L caption tokens (text_len - 1), N image tokens (grid**2), V image vocabulary.
Source: Ramesh et al. 2021, arXiv:2102.12092, section 2.6 (candidates and their order) and figure
2d (image prompts).
"""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from tqdm import tqdm

from minidalle.cache import Decoder, TextDecoder
from minidalle.clip import CLIP, pack_text
from minidalle.dalle import DALLE
from minidalle.dvae import DiscreteVAE
from minidalle.logits import draw, guide, restrict
from minidalle.models import load_model
from minidalle.tokenizer import PAD, BPETokenizer


@torch.no_grad()
def sample(
    dalle: DALLE,
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
    """Draw the image tokens of n pictures.

    text: the ids of one caption, or (n, L) int64 padded with PAD, a caption for each picture.
    temperature: 0 always takes the likeliest token. top_k, top_p: draw from the k likeliest, or
    from the fewest that together have probability p. guidance: s makes the logits u + s (c - u),
    u those of the empty caption; 1 is off. prompt: (p,) or (n, p) int64, tokens to start from.
    compile: fuse the small steps of each layer; the first call then takes a minute longer.

    Every picture uses up N numbers of `generator`, so on a CPU generator one call with n = 8 and
    two calls with n = 4 draw the same pictures.
    Returns (n, grid, grid) int64. Raises ValueError for a value that makes no sense.
    """
    _check(n, temperature, top_k, top_p, guidance)
    c = dalle.config
    device = dalle.image_start.device
    text = _captions(text, n, c.text_len - 1, c.text_vocab).to(device)
    prompt = _prompt(prompt, n, c.grid**2, c.image_vocab).to(device)
    draws = torch.rand(n, c.grid**2, generator=generator, device=_home(generator)).to(device)
    image = torch.cat([prompt.expand(n, -1), prompt.new_empty(n, c.grid**2 - prompt.shape[1])], 1)
    stream = (dalle, text, n, prompt, guidance != 1)
    predict = _cached(*stream, compile) if use_cache else _uncached(*stream)
    for cell in range(prompt.shape[1], c.grid**2):
        logits = guide(predict(image[:, :cell]), guidance)
        image[:, cell] = draw(restrict(logits, top_k, top_p), temperature, draws[:, cell])
    return image.unflatten(1, (c.grid, c.grid))


def _cached(dalle: DALLE, text: Tensor, n: int, prompt: Tensor, guided: bool, compile: bool):
    """Return a function of all tokens so far (n, cell) that gives logits (1 or 2, n, V)."""
    if guided:
        text = torch.cat([text, torch.full_like(text, PAD)])  # (2 captions, L)
    captions = len(text) // (1 + guided)
    prompt = prompt.unsqueeze(1 if captions > 1 else 0)  # (captions or 1, pictures or 1, p)
    if guided and len(prompt) > 1:
        prompt = torch.cat([prompt, prompt])
    decoder = Decoder(dalle, text, n // captions, prompt, compile)

    def predict(image: Tensor) -> Tensor:
        last = image[:, -1] if image.shape[1] else None
        if guided and last is not None:
            last = torch.cat([last, last])
        return decoder.step(last).view(1 + guided, n, -1)

    return predict


def _uncached(dalle: DALLE, text: Tensor, n: int, prompt: Tensor, guided: bool):
    """As `_cached`, but computes every state again for every token."""
    words = [dalle.embed_text(text).expand(n, -1, -1)]
    if guided:
        words.append(dalle.embed_text(torch.full_like(text, PAD)).expand(n, -1, -1))

    def predict(image: Tensor) -> Tensor:
        states = dalle.embed_image(image)
        streams = torch.cat([torch.cat([w, states], 1) for w in words])  # ((1 or 2) n, t, D)
        last = dalle.transformer(streams)[:, -1]
        return dalle.image_head(last).float().view(len(words), n, -1)

    return predict


def _check(
    n: int, temperature: float, top_k: int | None, top_p: float | None, guidance: float = 1.0
) -> None:
    if n < 1:
        raise ValueError(f"n must be positive, got {n}")
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature must be 0 or more, got {temperature}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be 1 or more, got {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p must be in (0, 1], got {top_p}")
    if not abs(guidance) < float("inf"):
        raise ValueError(f"guidance must be a finite number, got {guidance}")


def _captions(text: Sequence[int] | Tensor, n: int, length: int, vocab: int) -> Tensor:
    """Return captions (1 or n, length) int64, padded with PAD."""
    text = torch.as_tensor(text)
    text = text if text.numel() else text.long()  # an empty list makes a float tensor
    if text.ndim == 1 and len(text) <= length:
        text = F.pad(text, (0, length - len(text)), value=PAD)[None]
    if text.ndim != 2 or text.shape[1] != length or len(text) not in (1, n):
        raise ValueError(
            f"text must be one caption of at most {length} ids or ({n}, {length}), "
            f"got shape {tuple(text.shape)}"
        )
    if text.is_floating_point():
        raise ValueError(f"text ids must be integers, got {text.dtype}")
    if text.max() >= vocab or text.min() < PAD:
        raise ValueError(f"text ids must be below {vocab}, got {text.min()} to {text.max()}")
    return text


def _prompt(prompt: Tensor | None, n: int, cells: int, vocab: int) -> Tensor:
    """Return the leading tokens (1 or n, p) int64."""
    if prompt is None:
        return torch.zeros(1, 0, dtype=torch.int64)
    if prompt.is_floating_point():
        raise ValueError(f"prompt tokens must be integers, got {prompt.dtype}")
    prompt = prompt[None] if prompt.ndim == 1 else prompt
    if prompt.ndim != 2 or len(prompt) not in (1, n) or prompt.shape[1] > cells:
        raise ValueError(
            f"prompt must be (p,) or ({n}, p) with p up to {cells}, got {tuple(prompt.shape)}"
        )
    if prompt.numel() and not 0 <= prompt.min() <= prompt.max() < vocab:
        raise ValueError(f"prompt tokens must be below {vocab}, got up to {prompt.max()}")
    return prompt


@torch.no_grad()
def complete_text(
    dalle: DALLE,
    text: Sequence[int],
    n: int,
    length: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: Generator | None = None,
) -> Tensor:
    """Continue a caption, possibly empty, n times, until it has `length` tokens.

    A caption's end is no token of the model, so its length must be given. Other arguments as
    `sample`. Returns (n, length) int64. Raises ValueError where `length` leaves nothing to add.
    """
    _check(n, temperature, top_k, top_p)
    c = dalle.config
    text = torch.as_tensor(text, dtype=torch.int64)
    if not len(text) < length < c.text_len:
        raise ValueError(f"length must be from {len(text) + 1} to {c.text_len - 1}, got {length}")
    ids = torch.cat([text.expand(n, -1), text.new_empty(n, length - len(text))], 1)
    draws = torch.rand(n, length, generator=generator, device=_home(generator))
    ids, draws = ids.to(dalle.image_start.device), draws.to(dalle.image_start.device)
    decoder = TextDecoder(dalle)
    for i in range(len(text), length):
        logits = restrict(decoder.step(ids[:, :i]), top_k, top_p)
        ids[:, i] = draw(logits, temperature, draws[:, i])
    return ids


class Pipeline:
    """All stages of one run together: a caption goes in, pictures come out, the best first."""

    def __init__(
        self, tokenizer: BPETokenizer, dvae: DiscreteVAE, dalle: DALLE, clip: CLIP | None = None
    ):
        self.tokenizer, self.dvae, self.dalle, self.clip = tokenizer, dvae, dalle, clip

    @classmethod
    def load(
        cls,
        folder: str | Path,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> "Pipeline":
        """Load the models of a run, such as runs/toy; clip may be missing.

        dtype: of the prior's weights; bfloat16 halves the bytes that each token reads.
        Raises ValueError where another stage is, with the command that trains it.
        """
        folder = Path(folder)
        tokenizer = BPETokenizer.load(_find(folder, "tokenizer", "tokenizer.json"))
        models = {}
        for stage in ("dvae", "dalle", "clip"):
            if stage == "clip" and not (folder / stage / "model.safetensors").exists():
                continue
            models[stage] = load_model(_find(folder, stage, "model.safetensors").parent, device)
        models["dalle"].to(dtype)
        return cls(tokenizer, **models)

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
    ) -> tuple[Tensor, Tensor]:
        """Draw `candidates` pictures (n by default) and return the n that CLIP likes best.

        prompt: (p,) leading image tokens; other arguments as `sample`. Ctrl-C ends the drawing
        and keeps the finished batches.
        Returns images (n, 3, H, W) float32 in [0, 1] and their scores (n,), best first: the
        cosine of picture and caption, NaN without a clip. On the CPU, whatever the device.
        Raises ValueError for an empty or over-long caption, or for candidates without a clip.
        """
        _check(n, temperature, top_k, top_p, guidance)
        if batch_size < 1:
            raise ValueError(f"batch_size must be positive, got {batch_size}")
        text, candidates = self._encode(caption), candidates or n
        if candidates < n or (candidates > n and self.clip is None):
            why = "a trained clip is needed to choose" if candidates > n else "fewer than n"
            raise ValueError(f"{candidates} candidates for n={n} pictures: {why}")
        options = dict(temperature=temperature, top_k=top_k, top_p=top_p, guidance=guidance)
        options |= dict(prompt=prompt, generator=generator, compile=compile)
        images: list[Tensor] = []
        bar = tqdm(total=candidates, desc="pictures", disable=None if progress else True)
        try:
            with bar:
                for start in range(0, candidates, batch_size):
                    tokens = sample(
                        self.dalle, text, min(batch_size, candidates - start), **options
                    )
                    images.append(self._decode(tokens))
                    bar.update(len(tokens))
        except KeyboardInterrupt:
            if not images:
                raise
        drawn = torch.cat(images)
        scores = self.score(caption, drawn)
        order = scores.argsort(descending=True, stable=True)[:n]
        return drawn[order], scores[order]

    @torch.no_grad()
    def score(self, caption: str, images: Tensor, batch_size: int = 64) -> Tensor:
        """Return CLIP's cosine of a caption and each of images (n, 3, H, W): (n,), NaN without."""
        if self.clip is None:
            return torch.full((len(images),), float("nan"))
        device = self.clip.logit_scale.device
        text = pack_text(torch.tensor([self._encode(caption)]), self.clip.config)
        towards = self.clip.encode_text(text.to(device))[0]  # (E,)
        parts = [self.clip.encode_image(part.to(device)) for part in images.split(batch_size)]
        return (torch.cat(parts) @ towards).cpu()

    @torch.no_grad()
    def _decode(self, tokens: Tensor) -> Tensor:
        return self.dvae.decode(tokens).float().cpu()

    def _encode(self, caption: str) -> list[int]:
        ids, most = self.tokenizer.encode(caption), self.dalle.config.text_len - 1
        if not ids:
            raise ValueError(f"the caption is empty: {caption!r}")
        if len(ids) > most:
            raise ValueError(f"the caption has {len(ids)} tokens, at most {most} fit: {caption!r}")
        return ids


def _find(folder: Path, stage: str, name: str) -> Path:
    path = folder / stage / name
    if not path.is_file():
        raise ValueError(
            f"no trained {stage} in {folder} ({path} is missing): run "
            f"`python -m minidalle {stage} --preset {folder.name}`"
        )
    return path


def _home(generator: Generator | None) -> torch.device | str:
    return generator.device if generator else "cpu"
