"""DALL-E mini: an encoder reads the caption, a decoder writes the image tokens.

B batch, L text positions, N image tokens (grid**2), D width, H heads, K head width, F width of the
gated unit, V codes; G captions, m images of each.
Source: Dayma et al. 2021, DALL·E mini (github.com/borisdayma/dalle-mini); Lewis et al. 2019,
arXiv:1910.13461 (BART); Shleifer et al. 2021, arXiv:2110.09456 (NormFormer: the layer norms);
Shazeer 2020, arXiv:2002.05202 (the gated unit).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minidalle.config import MiniConfig
from minidalle.tokenizer import PAD
from minidalle.transformer import LayerNorm, initial_value

# BART's start, pad and end; its pads are seen by no one, so their id can stand for a hidden token.
# In our own tokenizer they are control characters, which no normalised caption holds.
START, HIDDEN, END = 0, 1, 2
HIDE = 0.3  # share of caption tokens hidden in denoising, BART's

Pair = tuple[Tensor, Tensor]  # keys and values, each (B, H, T, K)


class Attention(nn.Module):
    """Attention between two layer norms, without its residual. No map has a bias."""

    def __init__(self, c: MiniConfig):
        super().__init__()
        self.n_heads = c.n_heads
        self.norm = LayerNorm(c.width)
        self.q = nn.Linear(c.width, c.width, bias=False)
        self.kv = nn.Linear(c.width, 2 * c.width, bias=False)
        self.out = nn.Linear(c.width, c.width, bias=False)
        self.post_norm = LayerNorm(c.width)

    def keys_values(self, y: Tensor) -> Pair:
        """Return what the states y (B, T, D) offer to be looked at: two of (B, H, T, K)."""
        kv = self.kv(y).unflatten(-1, (2, self.n_heads, -1))  # (B, T, 2, H, K)
        return kv.permute(2, 0, 3, 1, 4).unbind(0)

    def forward(self, h: Tensor, kv: Pair, mask: Tensor | None = None, causal=False) -> Tensor:
        """Let the normed states h (B, T, D) look at keys and values. Returns (B, T, D)."""
        q = self.q(h).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)  # (B, H, T, K)
        seen = F.scaled_dot_product_attention(q, *kv, attn_mask=mask, is_causal=causal)
        return self.post_norm(self.out(seen.transpose(1, 2).flatten(2)))


class GatedUnit(nn.Module):
    """The feed-forward branch: one half opens and closes the other; a norm stands inside."""

    def __init__(self, c: MiniConfig):
        super().__init__()
        self.norm = LayerNorm(c.width)
        self.up = nn.Linear(c.width, 2 * c.glu_width, bias=False)
        self.inner_norm = LayerNorm(c.glu_width)
        self.down = nn.Linear(c.glu_width, c.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, D) -> (B, T, D)."""
        gate, value = self.up(self.norm(x)).chunk(2, -1)  # (B, T, F) each
        return self.down(self.inner_norm(F.gelu(gate) * value))


class EncoderBlock(nn.Module):
    """One layer over the caption: every word sees every word."""

    def __init__(self, c: MiniConfig):
        super().__init__()
        self.attention, self.mlp = Attention(c), GatedUnit(c)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x (B, L, D), mask (B, 1, 1, L) -> (B, L, D)."""
        h = self.attention.norm(x)
        x = x + self.attention(h, self.attention.keys_values(h), mask)
        return x + self.mlp(x)


class DecoderBlock(nn.Module):
    """One layer over the image: look at the cells before, then at the caption."""

    def __init__(self, c: MiniConfig):
        super().__init__()
        self.attention, self.cross_attention, self.mlp = Attention(c), Attention(c), GatedUnit(c)

    def forward(self, x: Tensor, caption: Pair, mask: Tensor) -> Tensor:
        """x (B, T, D), what `cross_attention` keeps of the caption, its mask -> (B, T, D)."""
        h = self.attention.norm(x)
        x = x + self.attention(h, self.attention.keys_values(h), causal=True)
        return self.read_caption(x, caption, mask)

    def read_caption(self, x: Tensor, caption: Pair, mask: Tensor) -> Tensor:
        """The rest of the layer, in which no state sees another."""
        x = x + self.cross_attention(self.cross_attention.norm(x), caption, mask)
        return x + self.mlp(x)


class Mini(nn.Module):
    """The prior p(image tokens | text). Weights are drawn from `seed` by parameter name."""

    def __init__(self, config: MiniConfig, seed: int = 0):
        super().__init__()
        self.config = c = config
        self.text_embedding = nn.Embedding(c.text_vocab, c.width)
        self.text_positions = nn.Embedding(c.text_len, c.width)
        self.text_norm = LayerNorm(c.width)
        self.encoder_blocks = nn.ModuleList(EncoderBlock(c) for _ in range(c.n_layers))
        self.encoder_norm = LayerNorm(c.width)
        self.image_embedding = nn.Embedding(c.image_vocab + c.spare_rows, c.width)
        self.image_positions = nn.Embedding(c.grid**2, c.width)
        self.image_norm = LayerNorm(c.width)
        self.decoder_blocks = nn.ModuleList(DecoderBlock(c) for _ in range(c.n_layers))
        self.decoder_norm = LayerNorm(c.width)
        self.image_head = nn.Linear(c.width, c.image_vocab + c.spare_rows, bias=False)
        if not self.image_head.weight.is_meta:
            self._init_weights(seed)
        self.start = c.image_vocab  # the row that stands before the image
        # What every prior tells the code that samples from it:
        self.caption_len, self.text_vocab = c.caption_len, c.text_vocab
        self.grid, self.image_vocab = c.grid, c.image_vocab

    @torch.no_grad()
    def _init_weights(self, seed: int) -> None:
        c = self.config
        for name, p in self.named_parameters():
            p.copy_(initial_value(name, p.shape, seed, c.n_layers, c.residual_init or 1.0))
            if name.endswith("post_norm.weight"):
                p.fill_(c.residual_init)  # the norm undoes any scale of the matrix before it

    def null_text(self, n: int) -> Tensor:
        """Return n empty captions (n, caption_len) int64: what guidance moves away from."""
        return torch.full((n, self.caption_len), PAD, device=self.text_positions.weight.device)

    def encode(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Read captions (B, L - 2) int64, padded with PAD after their end.

        Returns the states of start, words, end and pads (B, L, D), and which of them may be seen
        (B, 1, 1, L) bool: all but the pads.
        """
        ids = F.pad(text, (1, 1), value=PAD)  # (B, L)
        ids[:, 0] = START
        ids.scatter_(1, 1 + (text != PAD).sum(1, keepdim=True), END)
        mask = (ids != PAD)[:, None, None]  # (B, 1, 1, L)
        x = self.text_embedding(ids.clamp(min=0)) + self.text_positions.weight[: ids.shape[1]]
        x = self.text_norm(x)
        for block in self.encoder_blocks:
            x = block(x, mask)
        return self.encoder_norm(x), mask

    def embed_image(self, tokens: Tensor) -> Tensor:
        """The first n image tokens (..., n) int64 -> the states of cells 0 … n (..., n + 1, D)."""
        ids = F.pad(tokens, (1, 0), value=self.start)
        x = self.image_embedding(ids) + self.image_positions.weight[: ids.shape[-1]]
        return self.image_norm(x)

    def logits(self, text: Tensor, tokens: Tensor) -> Tensor:
        """Predict cells 0 … n of n given tokens (B, n) int64: logits (B, n + 1, V)."""
        states, mask = self.encode(text)
        x = self.embed_image(tokens)
        for block in self.decoder_blocks:
            x = block(x, block.cross_attention.keys_values(states), mask)
        return self.predict(x)

    def predict(self, x: Tensor) -> Tensor:
        """Last states (..., D) -> logits (..., V) of the codes; the start is no code."""
        return self.image_head(self.decoder_norm(x))[..., : self.config.image_vocab]

    def forward(self, text: Tensor, image: Tensor) -> Tensor:
        """Predict every image token from the caption and the tokens before it.

        text: (B, L - 2) int64, PAD after the caption's end; image: (B, N) or (B, grid, grid) int64.
        Returns logits (B, N, V). Raises ValueError where a shape does not fit the configuration.
        """
        c, image = self.config, image.flatten(1)
        if text.shape[1:] != (c.caption_len,) or image.shape != (len(text), c.grid**2):
            raise ValueError(
                f"expected text (B, {c.caption_len}) and image (B, {c.grid**2}), "
                f"got {tuple(text.shape)} and {tuple(image.shape)}"
            )
        return self.logits(text, image[:, :-1])

    def nats(self, text: Tensor, image: Tensor) -> Tensor:
        """Return -ln p of every image token, (B, N) float32."""
        logits = self(text, image).float()
        return F.cross_entropy(logits.mT, image.flatten(1), reduction="none")

    def loss(
        self, batch: dict[str, Tensor], step: int = 0, generator: torch.Generator | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean -ln p of an image token, in nats, and the same under its name.

        batch: "text" (B, L - 2), "tokens" (B, N). In training, `caption_dropout` empties captions
        with draws from `generator`; before update `denoise_steps` only the encoder learns, and the
        loss is that of `rebuild`, called "text_nats".
        """
        text, c = batch["text"], self.config
        where = generator.device if generator else text.device
        if self.training and step < c.denoise_steps:
            draws = torch.rand(text.shape, generator=generator, device=where).to(text.device)
            loss = self.rebuild(text, draws < HIDE)
            return loss, {"text_nats": loss.detach()}
        if self.training and c.caption_dropout:
            draws = torch.rand(len(text), 1, generator=generator, device=where).to(text.device)
            text = text.masked_fill(draws < c.caption_dropout, PAD)
        loss = self.nats(text, batch["tokens"]).mean()
        return loss, {"image_nats": loss.detach()}

    def rebuild(self, text: Tensor, hidden: Tensor) -> Tensor:
        """Denoising, as BART was trained: -ln p of a token that the encoder has not seen, in nats.

        text: (B, L - 2) int64; hidden, bool like it: which tokens to hide and to rebuild, by the
        table of embeddings. Returns their mean; 0 where none is hidden.
        """
        hidden = hidden & (text != PAD)
        states, _ = self.encode(text.masked_fill(hidden, HIDDEN))
        logits = states[:, 1:-1][hidden] @ self.text_embedding.weight.T  # (hidden, ids)
        nats = F.cross_entropy(logits.float(), text[hidden], reduction="sum")
        return nats / hidden.sum().clamp(min=1)

    @torch.no_grad()
    def log_likelihood(self, text: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return zeros, for the text is only read, and ln p(image | text): (B,) each, in nats."""
        ln_p = -self.nats(text, image).sum(1)
        return torch.zeros_like(ln_p), ln_p

    def decoder(
        self, text: Tensor, samples: int, prompt: Tensor, cached: bool = True, compile: bool = False
    ) -> "Decoder | PlainDecoder":
        """Return what predicts the image tokens of G captions; arguments as `DALLE.decoder`.

        Raises ValueError for `compile`: the number of keys grows from cell to cell.
        """
        if compile:
            raise ValueError("compile=True is not offered for DALL-E mini; leave it out")
        return (Decoder if cached else PlainDecoder)(self, text, samples, prompt)


class PlainDecoder:
    """Predicts image tokens by computing every state again for each of them."""

    def __init__(self, mini: Mini, text: Tensor, samples: int, prompt: Tensor):
        self.mini, self.text = mini, text.repeat_interleave(samples, 0)
        # The last token of the prompt is given to `step`.
        self.tokens = prompt.expand(len(text), samples, -1).flatten(0, 1)[:, :-1]  # (G m, p)

    def step(self, token: Tensor | None) -> Tensor:
        """Read the token (G m,) before the next cell, and predict that cell: (G m, V) float32."""
        if token is not None:
            self.tokens = torch.cat([self.tokens, token[:, None]], 1)
        return self.mini.logits(self.text, self.tokens)[:, -1].float()


class Decoder:
    """Predicts image tokens from remembered keys and values, one state a token.

    The caption is read once, and its keys and values serve all its images.
    """

    def __init__(self, mini: Mini, text: Tensor, samples: int, prompt: Tensor):
        c, self.mini, self.cell = mini.config, mini, prompt.shape[-1]  # the next to predict
        states, mask = mini.encode(text)
        longest = int(mask.sum(-1).max())  # no one sees the pads behind
        states, self.mask = states[:, :longest], mask[..., :longest]
        blocks = mini.decoder_blocks
        self.captions = [block.cross_attention.keys_values(states) for block in blocks]
        shape = (2, len(blocks), len(text), samples, c.n_heads, c.grid**2, c.head_dim)
        self.keys, self.values = states.new_empty(shape)  # (layers, G, m, H, N, K) each
        if self.cell:
            # A prompt is read once for each caption, or once for each of its images if they differ.
            known = prompt.expand(len(text), -1, -1)[..., :-1]  # the last is read by `step`
            self._read(mini.embed_image(known), 0)

    def step(self, token: Tensor | None) -> Tensor:
        """Read the token (G m,) before the next cell, None at cell 0, and predict that cell.

        Returns logits (G m, V) float32.
        """
        mini, cell, images = self.mini, self.cell, self.keys.shape[1:3]
        if token is None:
            x = mini.embed_image(self.mask.new_empty(*images, 0, dtype=torch.int64))
        else:
            x = mini.image_embedding(token) + mini.image_positions.weight[cell]
            x = mini.image_norm(x).view(*images, 1, -1)  # (G, m, 1, D)
        x = self._read(x, cell)
        self.cell += 1
        return mini.predict(x.flatten(0, 2)).float()

    def _read(self, x: Tensor, start: int) -> Tensor:
        """Take t states of cells from `start` on through the blocks, and keep their keys.

        x: (G, m, t, D), t = 1 unless start is 0; or (G, 1, t, D), one prompt for all images.
        Returns the shape of x.
        """
        images, end = x.shape[:2], start + x.shape[2]
        for i, block in enumerate(self.mini.decoder_blocks):
            h = block.attention.norm(x).flatten(0, 1)  # (G m, t, D)
            kv = block.attention.keys_values(h)  # (G m, H, t, K) each
            for kept, new in zip((self.keys[i], self.values[i]), kv, strict=True):
                kept[:, :, :, start:end] = new.unflatten(0, images)
            if start:
                kv = (y[i].flatten(0, 1)[:, :, :end] for y in (self.keys, self.values))
            x = x + block.attention(h, kv, causal=not start).unflatten(0, images)
            # All images of a caption stand side by side before it.
            x = block.read_caption(x.flatten(1, 2), self.captions[i], self.mask)
            x = x.unflatten(1, (images[1], -1))  # (G, m, t, D)
        return x
