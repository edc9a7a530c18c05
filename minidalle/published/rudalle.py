"""ruDALL-E: Malevich and its siblings, a DALL-E that was trained on Russian captions.

Names as `causal.py`. The names of the layers are those of the released files. In version 2 one
more start-of-text stands in front, so that the last text state counts as cell 0 of the masks.
Source: Shonenkov et al. 2021, github.com/ai-forever/ru-dalle; the norms are CogView's (Ding et al.
2021, arXiv:2105.13290); the tokenizer is github.com/VKCOM/YouTokenToMe.
"""

import re
from dataclasses import replace
from itertools import chain
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minidalle.published.causal import CausalPrior, Sizes
from minidalle.published.vqgan import GUMBEL_F8, read_vqgan
from minidalle.published.vqgan import make as make_vqgan
from minidalle.published.weights import Parts, fill, naming, read_state
from minidalle.published.words import Words
from minidalle.tokenizer import Cache, apply_merges

MALEVICH = Sizes(
    width=2048, n_layers=24, n_heads=16, caption_len=128, text_vocab=16_384, grid=32,
    image_vocab=8192,
)  # fmt: skip
KANDINSKY = replace(MALEVICH, width=3840, n_layers=64, n_heads=60)
CODEBOOK, VOCABULARY = "vqgan.gumbelf8-sber.model.ckpt", "bpe.model"
# Masks may lie in a file, too; they are made anew.
MASKS = [f"{place}{kind}_mask" for place in ("", "transformer.") for kind in ("row", "col", "conv")]
START, STOP = 2, 3  # ids; 0 is a pad, 1 is unknown
LARGEST = 65_504  # a float16


class Layer(nn.Module):
    """A LayerNorm before and one after each branch ('sandwich'), then the sum."""

    def __init__(self, width: int, n_heads: int):
        super().__init__()
        self.n_heads = n_heads
        self.input_layernorm = nn.LayerNorm(width)
        self.before_first_addition_layernorm = nn.LayerNorm(width)
        self.post_attention_layernorm = nn.LayerNorm(width)
        self.before_second_addition_layernorm = nn.LayerNorm(width)
        qkv, out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.attention = nn.ModuleDict({"query_key_value": qkv, "dense": out})
        up, down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.mlp = nn.ModuleDict({"dense_h_to_4h": up, "dense_4h_to_h": down})

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        """x (B, T, D) -> queries, keys and values (B, H, T, K)."""
        qkv = self.attention.query_key_value(self.input_layernorm(x))  # (B, T, 3D)
        return qkv.unflatten(-1, (3, self.n_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)

    def finish(self, x: Tensor, seen: Tensor) -> Tensor:
        """Add what the heads saw (B, T, D), then the MLP, each normed once more."""
        seen = self.attention.dense(seen).clamp(-LARGEST, LARGEST)
        x = x + self.before_first_addition_layernorm(seen)
        up = F.gelu(self.mlp.dense_h_to_4h(self.post_attention_layernorm(x)), approximate="tanh")
        return x + self.before_second_addition_layernorm(self.mlp.dense_4h_to_h(up))


class RuDALLE(CausalPrior):
    """The prior; `version` is 2 or 3. A pad at position p is the id text_vocab + p."""

    def __init__(self, sizes: Sizes, version: int):
        super().__init__(sizes)
        s, self.version = sizes, version
        n_text = s.text_vocab + s.caption_len
        self.text_embeddings = nn.Embedding(n_text, s.width)
        self.image_embeddings = nn.Embedding(s.image_vocab, s.width)
        self.text_pos_embeddings = nn.Embedding(s.caption_len + 1, s.width)
        self.image_row_embeddings = nn.Embedding(s.grid, s.width)
        self.image_col_embeddings = nn.Embedding(s.grid, s.width)
        layers = nn.ModuleList(Layer(s.width, s.n_heads) for _ in range(s.n_layers))
        norm = nn.LayerNorm(s.width)
        self.transformer = nn.ModuleDict({"layers": layers, "final_layernorm": norm})
        head = nn.Linear(s.width, n_text + s.image_vocab)
        self.to_logits = nn.Sequential(nn.LayerNorm(s.width), head)
        kinds = ["row"] * (s.n_layers - 1) + ["torus" if version == 2 else "window"]
        self.kinds = ["column" if i % 4 == 1 else kind for i, kind in enumerate(kinds)]
        self.seen_text = s.caption_len

    @property
    def layers(self) -> nn.ModuleList:
        return self.transformer.layers

    def null_text(self, n: int) -> Tensor:
        """Return n empty captions: a start and an end of text, then PAD."""
        text = super().null_text(n)
        text[:, 0], text[:, 1] = START, STOP
        return text

    def ids(self, text: Tensor) -> Tensor:
        pads = self.sizes.text_vocab + torch.arange(text.shape[1], device=text.device)
        ids = torch.where(text <= 0, pads, text)
        return F.pad(ids, (1, 0), value=START) if self.version == 2 else ids

    def embed_text(self, ids: Tensor) -> Tensor:
        return self.text_embeddings(ids) + self.text_pos_embeddings.weight[: ids.shape[1]]

    def embed_image(self, tokens: Tensor, index: Tensor) -> Tensor:
        place = self.image_row_embeddings(index // self.grid)
        return self.image_embeddings(tokens) + place + self.image_col_embeddings(index % self.grid)

    def text_logits(self, x: Tensor) -> Tensor:
        return self._logits(x, slice(0, len(self.text_embeddings.weight)))

    def image_logits(self, x: Tensor) -> Tensor:
        return self._logits(x, slice(len(self.text_embeddings.weight), None))

    def _logits(self, x: Tensor, columns: slice) -> Tensor:
        norm, head = self.to_logits
        x = norm(self.transformer.final_layernorm(x))  # two norms, as released
        return F.linear(x, head.weight[columns], head.bias[columns])


class YTTM(Words):
    """YouTokenToMe's byte-pair encoding over characters; each word starts with '▁'."""

    mark = "▁"

    def __init__(self, characters: dict[str, int], rules: list[tuple[int, int, int]], unknown: int):
        """characters: their ids. rules: of two ids, and the id that they make, best first."""
        if "▁" not in characters:
            raise ValueError("it has no id for '▁'")
        self.characters, self.unknown = characters, unknown
        self.vocab_size = len(characters) + len(rules) + 4
        self._ranks = {(x, y): rank for rank, (x, y, _) in enumerate(rules)}
        self._products = [z for _, _, z in rules]
        self.symbols = {i: character for character, i in characters.items()}
        for x, y, z in rules:
            self.symbols[z] = self.symbols.get(x, "") + self.symbols.get(y, "")
        self._pieces = re.compile(
            rf"[{re.escape(''.join(characters))}]|[^{re.escape(''.join(characters))}]+"
        )
        self._cache = Cache(self._encode_word)

    @classmethod
    def load(cls, path: Path) -> "YTTM":
        """Read the library's model file, which is plain numbers.

        Raises ValueError, naming it, where it is something else.
        """
        with naming(path, "YouTokenToMe model"):
            n, m, *numbers = map(int, path.read_text(encoding="ascii").split())
            if len(numbers) != 2 * n + 3 * m + 4:
                raise ValueError(f"it holds {len(numbers)} numbers, not {2 * n + 3 * m + 4}")
            pairs, rules, special = numbers[: 2 * n], numbers[2 * n : -4], numbers[-4:]
            if special != [1, 0, START, STOP]:
                raise ValueError(f"unknown, pad, start and end are {special}, not [1, 0, 2, 3]")
            characters = dict(zip(map(chr, pairs[::2]), pairs[1::2], strict=True))
            return cls(characters, list(zip(rules[::3], rules[1::3], rules[2::3], strict=True)), 1)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text in lowercase between start and end; nothing for an empty one."""
        words = re.findall(r"[^ \t\n\v\f\r▁]+", text.lower().strip())
        ids = [*chain.from_iterable(map(self._cache.__getitem__, words))]
        return [START, *ids, STOP] if ids else []

    def _encode_word(self, word: str) -> list[int]:
        # A run of unknown characters is one unknown token, which no rule merges.
        parts = self._pieces.findall(word)
        ids = [self.characters["▁"], *(self.characters.get(part, -1) for part in parts)]
        merged = apply_merges(ids, self._ranks, self._products)
        return [self.unknown if i < 0 else i for i in merged]


def make(sizes: Sizes = MALEVICH, version: int = 3) -> Parts:
    """Make the models without weights."""
    return Parts(codebook=make_vqgan(GUMBEL_F8).codebook, prior=RuDALLE(sizes, version))


def load(
    folder: str | Path, dtype: torch.dtype, file: str, sizes: Sizes = MALEVICH, version: int = 3
) -> Parts:
    """Load a ruDALL-E from a folder that holds `file`, CODEBOOK and VOCABULARY.

    Raises FileNotFoundError, or ValueError that names file and key.
    """
    folder = Path(folder)
    tokenizer = YTTM.load(folder / VOCABULARY)
    if tokenizer.vocab_size != sizes.text_vocab:
        found = f"makes {tokenizer.vocab_size} ids, but the prior embeds {sizes.text_vocab}"
        raise ValueError(f"{folder / VOCABULARY} {found}")
    with torch.device("meta"):
        prior = RuDALLE(sizes, version)
    fill(prior, read_state(folder / file, ignore=MASKS), folder / file, dtype)
    return Parts(tokenizer, read_vqgan(folder / CODEBOOK, GUMBEL_F8), prior)
