"""CLIP's own byte-pair encoding, read from the merges file that OpenAI published. B captions.

It is not DALL-E's (`tokenizer.py`): white space vanishes instead of being a token, and the last
symbol of every word carries the mark '</w>', so that "in" and the start of "into" differ.

Source: Radford et al. 2021, arXiv:2103.00020; github.com/openai/CLIP, clip/simple_tokenizer.py
(the file is bpe_simple_vocab_16e6.txt.gz beside it).
"""

import html
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import ftfy
import regex
import torch
from torch import Tensor

from minidalle.published.weights import naming, read_merges
from minidalle.tokenizer import PAD, Cache, apply_merges, byte_alphabet

N_MERGES = 48_894  # CLIP uses the first of the file's 262,144, for 49,408 ids in all
END = "</w>"
SPECIALS = ("<|startoftext|>", "<|endoftext|>")
_PART = regex.compile(
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+",
    regex.IGNORECASE,
)


def clean(text: str) -> str:
    """Return `text` repaired by ftfy, without HTML entities, single-spaced and in lowercase."""
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


class CLIPTokenizer:
    """Encodes as the published CLIP does.

    Ids: 256 bytes, 256 bytes that end a word, one per merge, start-of-text, end-of-text.
    """

    def __init__(self, merges: Sequence[tuple[str, str]]):
        """merges: pairs of symbols, best first, bytes shown as in `byte_alphabet`.

        Raises ValueError where a merge uses a symbol that no earlier one makes, or makes a known.
        """
        self._alphabet = byte_alphabet()
        symbols = sorted(self._alphabet)  # the 188 printable bytes first, as published
        symbols += [character + END for character in symbols]
        ids = {symbol: i for i, symbol in enumerate(symbols)}
        self._ranks = {}
        for rank, (left, right) in enumerate(merges):
            if left not in ids or right not in ids or left + right in ids:
                raise ValueError(f"merge {rank} of {left!r} and {right!r} does not fit the others")
            self._ranks[ids[left], ids[right]] = rank
            ids[left + right] = len(ids)
        self._ids = ids
        self._products = range(len(symbols), len(ids))
        self.sot, self.eot = len(ids), len(ids) + 1
        self._cache = Cache(self._encode_part)

    @classmethod
    def load(cls, path: str | Path) -> "CLIPTokenizer":
        """Read a merges file. Raises ValueError, naming it, where it is something else."""
        with naming(path := Path(path), "list of CLIP's merges"):
            return cls(read_merges(path, N_MERGES))

    @property
    def vocab_size(self) -> int:
        """Number of ids; 49,408 with the published file."""
        return self.eot + 1

    def encode(self, text: str) -> list[int]:
        """Return the ids of `clean(text)`, without start- and end-of-text."""
        parts = _PART.findall(clean(text))
        return [*chain.from_iterable(map(self._cache.__getitem__, parts))]

    def encode_batch(self, texts: Sequence[str], length: int) -> Tensor:
        """Return int64 (B, length): the ids of each caption, cut, then PAD.

        The frame is CLIP's (`clip.pack_text`); a start or an end that was typed is left out.
        """
        batch = torch.full((len(texts), length), PAD)
        for row, text in zip(batch, texts, strict=True):
            ids = [i for i in self.encode(text) if i < self.sot][:length]
            row[: len(ids)] = torch.tensor(ids, dtype=torch.int64)
        return batch

    def _encode_part(self, part: str) -> list[int]:
        if part in SPECIALS:
            return [self.sot + SPECIALS.index(part)]
        shown = [self._alphabet[b] for b in part.encode()]
        shown[-1] += END
        return apply_merges([self._ids[s] for s in shown], self._ranks, self._products)
