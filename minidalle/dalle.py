"""One stream of text and image tokens, and the likelihood of the next of them.

B batch, L caption tokens (text_len - 1), N image tokens (grid**2), T states (text_len + N),
D width, V vocabulary.
Source: Ramesh et al. 2021, arXiv:2102.12092, section 2.2, appendix B and figure 10.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minidalle import cache
from minidalle.attention import attend
from minidalle.attention.compiled import Graph, compile_step
from minidalle.config import DALLEConfig
from minidalle.tokenizer import PAD
from minidalle.transformer import Transformer, init_weights


class DALLE(nn.Module):
    """The prior: p(text, image tokens), one token after another.

    The states are start-of-text, L caption tokens or pads, start-of-image and the image tokens
    but the last. The state at image cell k predicts the token of cell k, so it carries token
    k - 1 with the row and column of cell k. Weights are drawn from `seed` by parameter name.
    """

    def __init__(self, config: DALLEConfig, seed: int = 0):
        super().__init__()
        self.config = c = config
        self.text_start = nn.Parameter(torch.empty(c.width))
        self.image_start = nn.Parameter(torch.empty(c.width))
        self.text_embedding = nn.Embedding(c.text_vocab, c.width)
        self.image_embedding = nn.Embedding(c.image_vocab, c.width)
        self.pads = nn.Embedding(c.text_len, c.width)
        self.positions = nn.Embedding(c.text_len, c.width)
        self.rows = nn.Embedding(c.grid, c.width)
        self.columns = nn.Embedding(c.grid, c.width)
        self.transformer = Transformer(c)
        self.text_head = nn.Linear(c.width, c.text_vocab, bias=False)
        self.image_head = nn.Linear(c.width, c.image_vocab, bias=False)
        if not self.text_start.is_meta:
            init_weights(self, seed)
        # What every prior tells the code that samples from it:
        self.caption_len, self.text_vocab = c.caption_len, c.text_vocab
        self.grid, self.image_vocab = c.grid, c.image_vocab

    def null_text(self, n: int) -> Tensor:
        """Return n empty captions (n, L) int64: the condition that guidance moves away from."""
        return torch.full((n, self.caption_len), PAD, device=self.image_start.device)

    def decoder(
        self, text: Tensor, samples: int, prompt: Tensor, cached: bool = True, compile: bool = False
    ) -> "Decoder | PlainDecoder":
        """Return what predicts the image tokens of G captions, one cell after another.

        text: (G, L) int64 padded with PAD. samples: m, images per caption. prompt: (G or 1,
        m or 1, p) int64, the leading tokens, read at once. cached=False computes every state again
        for every token. compile: fuse each layer's small steps.
        Its step(token) takes the tokens (G m,) of the cell before, None at cell 0, and returns
        logits (G m, V) float32.
        """
        if not cached:
            return PlainDecoder(self, text, samples, prompt)
        return Decoder(self, text, samples, prompt, compile)

    def embed_text(self, text: Tensor) -> Tensor:
        """text (B, L') int64 with PAD after its end -> states (B, L' + 1, D)."""
        n = text.shape[1] + 1
        start = self.text_start.expand(len(text), 1, -1)
        words = self.text_embedding(text.clamp(min=0))  # (B, L', D)
        states = torch.cat([start, words], 1) + self.positions.weight[:n]  # (B, L' + 1, D)
        is_pad = F.pad(text == PAD, (1, 0))[:, :, None]  # (B, L' + 1, 1)
        return torch.where(is_pad, self.pads.weight[:n], states)

    def embed_image(self, tokens: Tensor) -> Tensor:
        """The first n image tokens (B, n) int64 -> the states of cells 0 … n (B, n + 1, D)."""
        n = tokens.shape[1] + 1
        start = self.image_start.expand(len(tokens), 1, -1)
        states = torch.cat([start, self.image_embedding(tokens)], 1)  # (B, n + 1, D)
        return states + self.cells()[:n]

    def cells(self) -> Tensor:
        """Return the sum of row and column embedding of every cell, (N, D)."""
        return (self.rows.weight[:, None] + self.columns.weight[None]).flatten(0, 1)

    def forward(self, text: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Predict every token from those before it.

        text: (B, L) int64, PAD after the caption's end; image: (B, N) or (B, grid, grid) int64.
        Returns text logits (B, L, text_vocab), position i for text[:, i], and image logits
        (B, N, image_vocab). Raises ValueError where a shape does not fit the configuration.
        """
        states = self.states(text, image)
        n = self.config.text_len
        return self.text_head(states[:, : n - 1]), self.image_head(states[:, n:])

    def states(self, text: Tensor, image: Tensor) -> Tensor:
        """Return the last states (B, T, D); arguments and errors as `forward`."""
        c = self.config
        for name, ids in (("text", text), ("image", image)):
            if ids.ndim < 2 or ids.dtype != torch.int64:
                shape = tuple(ids.shape)
                raise ValueError(f"{name} must be (B, ...) int64, got {shape} {ids.dtype}")
        image = image.flatten(1)
        if text.shape[1:] != (c.text_len - 1,) or image.shape != (len(text), c.grid**2):
            raise ValueError(
                f"expected text (B, {c.text_len - 1}) and image (B, {c.grid**2}), "
                f"got {tuple(text.shape)} and {tuple(image.shape)}"
            )
        stream = torch.cat([self.embed_text(text), self.embed_image(image[:, :-1])], 1)  # (B, T, D)
        return self.transformer(stream)

    def nats(self, text: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return -ln p of every token: text (B, L), 0 at pads, and image (B, N)."""
        text_logits, image_logits = self(text, image)
        return _nats(text_logits, text), _nats(image_logits, image.flatten(1))

    def loss(
        self, batch: dict[str, Tensor], step: int = 0, generator: torch.Generator | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted loss and its two parts, in nats per text or image token.

        batch: "text" (B, L), "tokens" (B, N). Each part is a mean over all tokens of its kind.
        "text_count" (), optional: caption tokens to divide by, where this batch is one of several
        equal parts of a larger one: the mean number per part, before any dropout.
        In training, `caption_dropout` empties captions with draws from `generator`.
        """
        text, image = batch["text"], batch["tokens"]
        w = self.config.text_weight
        if self.training and self.config.caption_dropout:
            device = generator.device if generator else text.device
            draws = torch.rand(len(text), 1, generator=generator, device=device).to(text.device)
            text = text.masked_fill(draws < self.config.caption_dropout, PAD)
        text_nats, image_nats = self.nats(text, image)
        count = (text != PAD).sum().clamp(min=1)
        if "text_count" in batch:
            kept = 1 - self.config.caption_dropout if self.training else 1
            count = (batch["text_count"] * kept).clamp(min=1)
        text_nats = text_nats.sum() / count
        image_nats = image_nats.mean()
        metrics = {"text_nats": text_nats.detach(), "image_nats": image_nats.detach()}
        return w * text_nats + (1 - w) * image_nats, metrics

    @torch.no_grad()
    def log_likelihood(self, text: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return ln p(text) and ln p(image | text) of each pair, two tensors (B,), in nats."""
        text_nats, image_nats = self.nats(text, image)
        return -text_nats.sum(1), -image_nats.sum(1)


class PlainDecoder:
    """A DALLE that predicts image tokens by reading the whole stream again for each of them."""

    def __init__(self, dalle: DALLE, text: Tensor, samples: int, prompt: Tensor):
        rows = len(text) * samples
        self.dalle, self.words = dalle, dalle.embed_text(text).repeat_interleave(samples, 0)
        # The last token of the prompt is given to `step`.
        self.tokens = prompt.expand(len(text), samples, -1).reshape(rows, -1)[:, :-1]  # (G m, p)

    def step(self, token: Tensor | None) -> Tensor:
        """Read the token (G m,) before the next cell, and predict that cell: (G m, V) float32."""
        if token is not None:
            self.tokens = torch.cat([self.tokens, token[:, None]], 1)
        stream = torch.cat([self.words, self.dalle.embed_image(self.tokens)], 1)  # (G m, t, D)
        return self.dalle.image_head(self.dalle.transformer(stream)[:, -1]).float()


class Decoder:
    """A DALLE that predicts image tokens from remembered keys and values, one state a token.

    The cell is a tensor, and a step does the same with the same memory at every cell: on a GPU it
    is recorded once, and then replayed. Arguments as `DALLE.decoder`.
    """

    def __init__(self, dalle: DALLE, text: Tensor, samples: int, prompt: Tensor, compile: bool):
        self.dalle, self.rows = dalle, len(text) * samples
        self.cell = torch.tensor([prompt.shape[-1]], device=text.device)  # the next to predict
        self.cells = dalle.cells()
        self.step_layer = compile_step(cache.step_layer) if compile else cache.step_layer
        self.caches = self._read(text, samples, prompt.expand(len(text), -1, -1))
        self.graph: Graph | None = None

    def _read(self, text: Tensor, samples: int, prompt: Tensor) -> list[cache.LayerCache]:
        """Fill a cache for each layer with the text and the states of cells before the next."""
        c, (_, copies, p), caches = self.dalle.config, prompt.shape, []
        # A prompt is read once for each caption, or once for each of its images if they differ.
        words = self.dalle.embed_text(text).repeat_interleave(copies, 0)  # (G copies, L + 1, D)
        known = prompt.flatten(0, 1)[:, : max(p - 1, 0)]  # the last is read by `step`
        image = self.dalle.embed_image(known)[:, :p]
        x = torch.cat([words, image], 1)  # (G copies, L + 1 + p, D)
        for block in self.dalle.transformer.blocks:
            a = block.attention
            q, k, v = a.project(x)  # (G copies, H, L + 1 + p, K)
            x = x + a.merge(attend(q, k, v, a.kind, c.text_len, c.grid, c.kernel, c.attention))
            x = x + block.mlp(x)
            # Text once for all copies, image states copy by copy.
            k, v = (y.unflatten(0, (-1, copies)).transpose(1, 2) for y in (k, v))
            text_k, text_v = (y[:, :, 0, : c.text_len].contiguous() for y in (k, v))
            places = cache.layout(a.kind, c.grid, c.kernel, x.device)
            caches.append(cache.LayerCache(a.kind, c.grid, places, text_k, text_v, samples))
            caches[-1].put(p, k[:, :, :, c.text_len :], v[:, :, :, c.text_len :])
        return caches

    def step(self, token: Tensor | None) -> Tensor:
        """Read the token (G m,) before the next cell, None at cell 0, and predict that cell.

        Returns logits (G m, V), float32.
        """
        if token is None:
            token = self.cell.new_zeros(self.rows)  # not read
        if self.graph is None and token.device.type == "cuda":
            self.graph = Graph(self._predict, token)
        logits = (self.graph or self._predict)(token)
        self.cell += 1
        return logits

    def _predict(self, token: Tensor) -> Tensor:
        """Predict `cell`, a tensor. Safe to repeat: the warm-up of a recording runs it twice."""
        dalle = self.dalle
        x = torch.where(self.cell == 0, dalle.image_start, dalle.image_embedding(token))
        x = x + self.cells.index_select(0, self.cell)  # (G m, D)
        places = {kept.kind: kept.layout for kept in self.caches}
        places = {kind: layout.at(self.cell) for kind, layout in places.items()}
        for block, kept in zip(dalle.transformer.blocks, self.caches, strict=True):
            x = self.step_layer(block, kept, *places[kept.kind], x)
        return dalle.image_head(dalle.transformer.norm(x)).float()


def _nats(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy (B, n) float32 of logits (B, n, V) at targets (B, n); 0 where PAD."""
    nats = F.cross_entropy(
        logits.flatten(0, 1).float(), targets.flatten(), ignore_index=PAD, reduction="none"
    )
    return nats.view(targets.shape)
