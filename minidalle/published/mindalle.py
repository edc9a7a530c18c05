"""minDALL-E: a dense decoder of 1.3 billion parameters over 64 text and 256 image states.

Names as `causal.py`. The names of the layers are those of the released file.
Source: Kim et al. 2021, github.com/kakaobrain/minDALL-E; the tokenizer is the `tokenizers`
library's CharBPETokenizer (Sennrich et al. 2016, arXiv:1508.07909).
"""

import json
import unicodedata
from itertools import chain
from pathlib import Path

import regex
import torch
from torch import Tensor, nn

from minidalle.published.causal import CausalPrior, Sizes
from minidalle.published.vqgan import F16_16384, read_vqgan
from minidalle.published.vqgan import make as make_vqgan
from minidalle.published.weights import Parts, fill, naming, read_merges, read_state
from minidalle.published.words import Words
from minidalle.tokenizer import PAD, Cache, apply_merges

MINDALLE = Sizes(
    width=1536, n_layers=42, n_heads=24, caption_len=64, text_vocab=16_384, grid=16,
    image_vocab=16_384,
)  # fmt: skip
VOCABULARY, MERGES = "tokenizer/bpe-16k-vocab.json", "tokenizer/bpe-16k-merges.txt"
CODEBOOK, PRIOR = "stage1_last.ckpt", "stage2_last.ckpt"
FILES = (VOCABULARY, MERGES, CODEBOOK, PRIOR)
ARCHIVE = (  # the folder's name is the MD5
    "https://arena.kakaocdn.net/brainrepo/models/minDALL-E/57b008f02ceaa02b779c8b7463143315"
    "/1.3B.tar.gz"
)

END = "</w>"
_SIGN = r"\p{P}$+<=>^`|~"  # stands alone: what Unicode or ASCII call punctuation
_PART = regex.compile(rf"[{_SIGN}]|[^\s{_SIGN}]+")
# Chinese characters stand alone too; the gap from 2B820 is the library's.
_CHINESE = regex.compile(
    "[\u4e00-\u9fff\u3400-\u4dbf\U00020000-\U0002a6df\U0002a700-\U0002b73f"
    "\U0002b740-\U0002b81f\U0002b920-\U0002ceaf\uf900-\ufaff\U0002f800-\U0002fa1f]"
)


class Layer(nn.Module):
    """LayerNorm before attention, LayerNorm before an MLP of width 4D, each added."""

    def __init__(self, width: int, n_heads: int):
        super().__init__()
        self.n_heads = n_heads
        self.ln1, self.ln2 = nn.LayerNorm(width), nn.LayerNorm(width)
        names = ("key", "query", "value", "proj")
        self.attn = nn.ModuleDict({name: nn.Linear(width, width) for name in names})
        up, down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.mlp = nn.Sequential(up, nn.GELU(), down)

    def project(self, x: Tensor) -> list[Tensor]:
        """x (B, T, D) -> queries, keys and values (B, H, T, K)."""
        x, maps = self.ln1(x), (self.attn[name] for name in ("query", "key", "value"))
        return [f(x).unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for f in maps]

    def finish(self, x: Tensor, seen: Tensor) -> Tensor:
        """Add what the heads saw (B, T, D), then the MLP."""
        x = x + self.attn.proj(seen)
        return x + self.mlp(self.ln2(x))


class MinDALLE(CausalPrior):
    """The prior. `pad` is the id that fills a caption: it is read like any other."""

    def __init__(self, sizes: Sizes, pad: int = 0):
        super().__init__(sizes)
        s, self.pad = sizes, pad
        self.tok_emb_img = nn.Embedding(s.image_vocab, s.width)
        self.tok_emb_txt = nn.Embedding(s.text_vocab, s.width)
        self.pos_emb_img = nn.Embedding(s.grid**2, s.width)
        self.pos_emb_txt = nn.Embedding(s.caption_len, s.width)
        self.blocks = nn.ModuleList(Layer(s.width, s.n_heads) for _ in range(s.n_layers))
        self.ln_f = nn.LayerNorm(s.width)
        self.head_img = nn.Linear(s.width, s.image_vocab, bias=False)
        self.head_txt = nn.Linear(s.width, s.text_vocab, bias=False)
        self.kinds, self.seen_text = ["all"] * s.n_layers, s.caption_len

    @property
    def layers(self) -> nn.ModuleList:
        return self.blocks

    def ids(self, text: Tensor) -> Tensor:
        return text.masked_fill(text == PAD, self.pad)

    def embed_text(self, ids: Tensor) -> Tensor:
        return self.tok_emb_txt(ids) + self.pos_emb_txt.weight

    def embed_image(self, tokens: Tensor, index: Tensor) -> Tensor:
        return self.tok_emb_img(tokens) + self.pos_emb_img(index)

    def text_logits(self, x: Tensor) -> Tensor:
        return self.head_txt(self.ln_f(x))

    def image_logits(self, x: Tensor) -> Tensor:
        return self.head_img(self.ln_f(x))


class CharBPE(Words):
    """Byte-pair encoding over characters; the last symbol of each word carries '</w>'."""

    mark = END

    def __init__(self, vocab: dict[str, int], merges: list[tuple[str, str]]):
        """Raises ValueError where a merge or '[UNK]' is not in the vocabulary."""
        for symbol in chain(["[UNK]"], *merges, map("".join, merges)):
            if symbol not in vocab:
                raise ValueError(f"{symbol!r} is not in the vocabulary")
        self.vocab, self.unknown = vocab, vocab["[UNK]"]
        self.symbols = {i: symbol for symbol, i in vocab.items()}
        self.pad = vocab.get("[PAD]", len(vocab))
        self.vocab_size = max(len(vocab), self.pad + 1)
        self._ranks = {(vocab[a], vocab[b]): rank for rank, (a, b) in enumerate(merges)}
        self._products = [vocab[a + b] for a, b in merges]
        self._cache = Cache(self._encode_word)

    @classmethod
    def load(cls, vocab: Path, merges: Path) -> "CharBPE":
        """Read the two files. Raises ValueError, naming one, where it is something else."""
        with naming(vocab, "vocabulary"):
            ids = json.loads(vocab.read_text(encoding="utf-8"))
            if sorted(ids.values()) != list(range(len(ids))):
                raise ValueError(f"the ids of its {len(ids)} symbols are not 0, 1, 2, …")
        with naming(merges, "list of merges"):
            return cls(ids, read_merges(merges))

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text in lowercase; without control characters, spaces count not."""
        kept = (" " if c in "\t\n\r" else c for c in text if c in "\t\n\r" or _shown(c))
        text = _CHINESE.sub(r" \g<0> ", "".join(kept))
        text = "".join(c.lower() for c in text)  # letter by letter, as the library does
        return [*chain.from_iterable(map(self._cache.__getitem__, _PART.findall(text)))]

    def _encode_word(self, word: str) -> list[int]:
        symbols = [*word[:-1], word[-1] + END]
        ids = [self.vocab.get(symbol, self.unknown) for symbol in symbols]
        return apply_merges(ids, self._ranks, self._products)


def _shown(c: str) -> bool:
    return c != "\ufffd" and not unicodedata.category(c).startswith("C")


def make() -> Parts:
    """Make the models without weights."""
    return Parts(codebook=make_vqgan(F16_16384).codebook, prior=MinDALLE(MINDALLE))


def load(folder: str | Path, dtype: torch.dtype = torch.float32) -> Parts:
    """Load minDALL-E from the folder that its archive 1.3B.tar.gz unpacks to.

    Raises FileNotFoundError, or ValueError that names file and key.
    """
    folder = Path(folder)
    tokenizer = CharBPE.load(folder / VOCABULARY, folder / MERGES)
    if tokenizer.vocab_size != MINDALLE.text_vocab:
        found = f"makes {tokenizer.vocab_size} ids, but the prior embeds {MINDALLE.text_vocab}"
        raise ValueError(f"{folder / VOCABULARY} {found}")
    with torch.device("meta"):
        prior = MinDALLE(MINDALLE, tokenizer.pad)
    fill(prior, read_state(folder / PRIOR), folder / PRIOR, dtype)
    return Parts(tokenizer, read_vqgan(folder / CODEBOOK, F16_16384), prior)
