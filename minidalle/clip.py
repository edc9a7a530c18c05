"""Which caption fits which image? Two towers whose unit vectors meet where they fit.

B batch, L caption tokens, C context length, T tokens of a tower, D width, H heads, E shared width,
P processes. Names, shapes and initialisation are those of the released models.
Source: Radford et al. 2021, arXiv:2103.00020, sections 2.3-2.5, and github.com/openai/CLIP.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minidalle.config import CLIPConfig

PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)
MAX_LOGIT_SCALE = math.log(100)


class QuickGELU(nn.Module):
    """x sigmoid(1.702 x), the released models' stand-in for the Gaussian error linear unit."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Attention(nn.Module):
    """Multi-head self-attention under the parameter names of `torch.nn.MultiheadAttention`."""

    def __init__(self, width: int, n_heads: int):
        super().__init__()
        self.n_heads = n_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, causal: bool) -> Tensor:
        B, T, D = x.shape
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)  # (B, T, 3D)
        q, k, v = qkv.view(B, T, 3, self.n_heads, -1).permute(2, 0, 3, 1, 4)  # (B, H, T, D/H)
        x = self_attention(q, k, v, causal)
        return self.out_proj(x.transpose(1, 2).reshape(B, T, D))


def self_attention(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """Attend to all states, or where `causal` to those before; (B, H, T, D/H) each."""
    if q.device.type != "cpu" or q.dtype == torch.float32:
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    # In bfloat16 the backward pass of torch's fused CPU kernel takes several times this one's time.
    scores = torch.matmul(q * q.shape[-1] ** -0.5, k.mT)  # (B, H, T, T)
    if causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(later, float("-inf"))
    return scores.softmax(-1) @ v


class ResidualAttentionBlock(nn.Module):
    """LayerNorm before attention, LayerNorm before an MLP of width 4D, each added to the stream."""

    def __init__(self, width: int, n_heads: int):
        super().__init__()
        self.attn = Attention(width, n_heads)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(width, 4 * width))
        self.mlp.add_module("gelu", QuickGELU())
        self.mlp.add_module("c_proj", nn.Linear(4 * width, width))
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x: Tensor, causal: bool) -> Tensor:
        x = x + self.attn(self.ln_1(x), causal)
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """A stack of blocks; causal for text, not for images."""

    def __init__(self, width: int, n_layers: int, n_heads: int, causal: bool):
        super().__init__()
        self.causal = causal
        self.resblocks = nn.ModuleList(
            ResidualAttentionBlock(width, n_heads) for _ in range(n_layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        for block in self.resblocks:
            x = block(x, self.causal)
        return x


class VisionTransformer(nn.Module):
    """Patches and one class token through a transformer; the class token becomes the feature."""

    def __init__(self, config: CLIPConfig):
        super().__init__()
        width, patch = config.vision_width, config.patch_size
        n_tokens = (config.image_size // patch) ** 2 + 1
        self.conv1 = nn.Conv2d(3, width, patch, stride=patch, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width) * width**-0.5)
        self.positional_embedding = nn.Parameter(torch.randn(n_tokens, width) * width**-0.5)
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(
            width, config.vision_layers, config.vision_heads, causal=False
        )
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.randn(width, config.embed_dim) * width**-0.5)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv1(images).flatten(2).transpose(1, 2)  # (B, patches, D)
        first = self.class_embedding.to(x.dtype).expand(len(x), 1, -1)
        x = torch.cat([first, x], dim=1)  # (B, T, D)
        x = self.ln_pre(x + self.positional_embedding.to(x.dtype))
        x = self.transformer(x)
        return self.ln_post(x[:, 0]) @ self.proj  # (B, E)


class CLIP(nn.Module):
    """The two towers and their temperature.

    `gather` turns the features of this process, (B, E), into those of all processes in order of
    rank, (P * B, E), and the index of our first row; it must let gradients through. Alone it
    changes nothing; `minidalle.scale` sets another.
    """

    def __init__(self, config: CLIPConfig):
        super().__init__()
        self.config = config
        width = config.text_width
        self.visual = VisionTransformer(config)
        self.transformer = Transformer(width, config.text_layers, config.text_heads, causal=True)
        self.token_embedding = nn.Embedding(config.vocab_size, width)
        self.positional_embedding = nn.Parameter(torch.empty(config.context_length, width))
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, config.embed_dim))
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.register_buffer("mean", torch.tensor(PIXEL_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(PIXEL_STD).view(3, 1, 1), persistent=False)
        self.gather: Callable[[Tensor], tuple[Tensor, int]] = keep_local
        self.tokenizer = None  # of its captions, for `score`; whoever loads the weights sets it
        self._initialise_text()

    def _initialise_text(self) -> None:
        width, depth = self.config.text_width, self.config.text_layers
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        nn.init.normal_(self.text_projection, std=width**-0.5)
        for block in self.transformer.resblocks:
            nn.init.normal_(block.attn.in_proj_weight, std=width**-0.5)
            nn.init.normal_(block.attn.out_proj.weight, std=width**-0.5 * (2 * depth) ** -0.5)
            nn.init.normal_(block.mlp.c_fc.weight, std=(2 * width) ** -0.5)
            nn.init.normal_(block.mlp.c_proj.weight, std=width**-0.5 * (2 * depth) ** -0.5)

    def encode_image(self, images: Tensor) -> Tensor:
        """Place images on the unit sphere.

        images (B, 3, S, S) float in [0, 1]; another size than clip.image_size is resampled
        (bicubic, as released). Returns (B, E) float32 unit vectors.
        Raises ValueError for another shape.
        """
        if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] != images.shape[3]:
            raise ValueError(f"images must be (B, 3, S, S), got {tuple(images.shape)}")
        if not images.is_floating_point():
            raise ValueError(f"images must be float in [0, 1], got {images.dtype}; divide by 255")
        size = self.config.image_size
        if images.shape[-1] != size:
            images = F.interpolate(images, (size, size), mode="bicubic", antialias=True)
            images = images.clamp(0, 1)  # bicubic curves overshoot
        return F.normalize(self.visual((images - self.mean) / self.std).float(), dim=-1)

    def encode_text(self, ids: Tensor) -> Tensor:
        """Place captions on the unit sphere.

        ids (B, up to C) as `pack_text` lays them out. Returns (B, E) float32 unit vectors.
        Raises ValueError when ids are longer than the context.
        """
        if ids.ndim != 2 or ids.shape[1] > self.config.context_length:
            raise ValueError(
                f"ids must be (B, at most {self.config.context_length}), got {tuple(ids.shape)}"
            )
        end = ids.argmax(dim=-1)  # (B,) end-of-text is the largest id
        ids = ids[:, : end.max() + 1]  # (B, T) nothing looks ahead, so the rest may go
        x = self.token_embedding(ids) + self.positional_embedding[: ids.shape[1]]  # (B, T, D)
        x = self.ln_final(self.transformer(x))
        x = x[torch.arange(len(x), device=x.device), end]  # (B, D)
        return F.normalize((x @ self.text_projection).float(), dim=-1)

    @torch.no_grad()
    def score(self, captions: list[str], images: Tensor, batch_size: int = 64) -> Tensor:
        """Return the cosine of each image and its caption: (n,) float32, on the CPU.

        captions: n of them, or one for all; longer than the context they are cut. images
        (n, 3, S, S) float in [0, 1].
        """
        text = self.encode_captions(captions)  # (n or 1, E)
        parts = [self.encode_image(part.to(text.device)) for part in images.split(batch_size)]
        return (torch.cat(parts) * text).sum(1).cpu()

    def encode_captions(self, captions: list[str]) -> Tensor:
        """Place captions on the unit sphere, (n, E); longer than the context they are cut."""
        ids = self.tokenizer.encode_batch(captions, self.config.context_length - 2)
        ids = pack_text(ids, self.config).to(self.logit_scale.device)
        return torch.cat([self.encode_text(part) for part in ids.split(256)])

    def loss(
        self, batch: dict[str, Tensor], step: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Ask every image for its caption and every caption for its image.

        batch holds "text" (B, L) padded with -1 and "images" (B + F, 3, S, S) in [0, 1]. The first
        B images belong to the captions row by row, the last F to none: wrong answers for all.
        "fits" (B, B + F) bool, optional: [i, j] says that caption i is also true of image j, which
        then counts neither as right nor as wrong.
        Returns the symmetric cross-entropy in nats, and the share of right first guesses both ways.
        """
        image = self.encode_image(batch["images"])
        text = self.encode_text(pack_text(batch["text"], self.config))
        loss, image_to_text, text_to_image = contrastive_loss(
            image, text, self.logit_scale, self.gather, batch.get("fits")
        )
        return loss, {
            "image_to_text": image_to_text,
            "text_to_image": text_to_image,
            "temperature": torch.exp(-self.logit_scale.detach()),
        }

    @torch.no_grad()
    def after_update(self) -> None:
        """Keep the logit scale at 100 or below (section 2.5); the trainer calls it each update."""
        self.logit_scale.clamp_(max=MAX_LOGIT_SCALE)


def keep_local(features: Tensor) -> tuple[Tensor, int]:
    """Gather for a process that is alone: all features are ours, starting at row 0."""
    return features, 0


def contrastive_loss(
    image: Tensor,
    text: Tensor,
    logit_scale: Tensor,
    gather: Callable[[Tensor], tuple[Tensor, int]] = keep_local,
    fits: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compare our B images with all captions, and our B captions with all images.

    image (B + F, E), text (B, E) unit vectors, row i of one belonging to row i of the other, the
    last F images to no caption; logit_scale is the logarithm of the factor on their products.
    fits (B, B + F) bool: pairs to leave out, but for row i with row i; only in a process that is
    alone, as are F images. Each process scores its own rows only; when gradients are averaged over
    processes they equal those of one big batch.
    Returns the loss in nats, and the shares of right first guesses from image to text and back.
    Source: section 2.3, figure 3.
    """
    B = len(text)
    (all_images, first), (all_texts, _) = gather(image), gather(text)  # (P * B + F, E), (P * B, E)
    target = torch.arange(first, first + B, device=image.device)
    # 16-bit products would round logits near 100 to steps of a half.
    with torch.autocast(image.device.type, enabled=False):
        scale = logit_scale.float().exp()
        per_image = scale * image[:B] @ all_texts.T  # (B, P * B)
        per_text = scale * text @ all_images.T  # (B, P * B + F)
        if fits is not None:
            own = torch.eye(B, len(image), dtype=torch.bool, device=fits.device)
            out = fits & ~own  # (B, B + F)
            per_text = per_text.masked_fill(out, float("-inf"))
            per_image = per_image.masked_fill(out[:, :B].T, float("-inf"))
        loss = (F.cross_entropy(per_image, target) + F.cross_entropy(per_text, target)) / 2
    guesses = [(p.detach().argmax(1) == target).float().mean() for p in (per_image, per_text)]
    return loss, guesses[0], guesses[1]


def pack_text(text: Tensor, config: CLIPConfig) -> Tensor:
    """Frame captions as the released models read them: start, tokens, end, then zeros.

    text (B, L) int64 token ids, padded at the end with -1.
    Returns (B, C) int64; start-of-text is vocab_size - 2 and end-of-text vocab_size - 1.
    Raises ValueError when a caption cannot fit the context, or an id is a reserved one.
    """
    if text.ndim != 2:
        raise ValueError(f"text must be (B, L), got {tuple(text.shape)}")
    B, L = text.shape
    start, end = config.vocab_size - 2, config.vocab_size - 1
    if config.context_length < L + 2:
        raise ValueError(
            f"{L} caption tokens, start and end do not fit clip.context_length="
            f"{config.context_length}; it must be at least {L + 2}"
        )
    if text.numel() and text.max() >= start:
        raise ValueError(
            f"token id {text.max().item()} is not below clip.vocab_size - 2 = {start}; "
            "clip.vocab_size must be the tokenizer's plus 2"
        )
    # Start, the tokens, and end-of-text right behind the last of them.
    ids = text.new_zeros(B, config.context_length)  # (B, C)
    ids[:, 0] = start
    ids[:, 1 : L + 1] = text.clamp(min=0)
    length = (text >= 0).sum(1, keepdim=True)  # (B, 1)
    return ids.scatter_(1, length + 1, end)
