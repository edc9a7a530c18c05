"""CLIP's own byte-pair encoding, read from the merges file that OpenAI published. B captions.

It is not DALL-E's (`tokenizer.py`): white space vanishes instead of being a token, and the last
symbol of every word carries the mark '</w>', so that "in" and the start of "into" differ.

Source: Radford et al. 2021, arXiv:2103.00020; github.com/openai/CLIP, clip/simple_tokenizer.py
(the file is bpe_simple_vocab_16e6.txt.gz beside it).
"""

import gzip
import html
import zlib
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

import ftfy
import regex
import torch
from torch import Tensor

from minidalle.tokenizer import Cache, apply_merges, byte_alphabet

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
        self._ids, self._symbols = ids, list(ids)
        self._products = range(len(symbols), len(ids))
        self.sot, self.eot = len(ids), len(ids) + 1
        self._cache = Cache(self._encode_part)

    @classmethod
    def load(cls, path: str | Path) -> "CLIPTokenizer":
        """Read a merges file, gzipped or plain: a '#version' line, then 'left right' a line.

        Raises ValueError, naming the file, where it is something else.
        """
        try:
            content = Path(path).read_bytes()
            text = (gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content).decode()
            head, *lines = text.removesuffix("\n").split("\n")
            merges = [tuple(line.split()) for line in lines[:N_MERGES]]
            if "#version" not in head:
                raise ValueError(f"its first line is {head[:40]!r}, not a '#version' line")
            for pair in merges:
                if len(pair) != 2:
                    raise ValueError(f"{' '.join(pair)[:40]!r} is not a pair of symbols")
            return cls(merges)
        except (ValueError, EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"{path} is not a CLIP merges file: {error}") from None

    @property
    def vocab_size(self) -> int:
        """Number of ids; 49,408 with the published file."""
        return self.eot + 1

    def encode(self, text: str) -> list[int]:
        """Return the ids of `clean(text)`, without start- and end-of-text."""
        parts = _PART.findall(clean(text))
        return [*chain.from_iterable(map(self._cache.__getitem__, parts))]

    def encode_batch(self, texts: Sequence[str], length: int = 77) -> Tensor:
        """Return int64 (B, length): start-of-text, ids, end-of-text, then zeros.

        A longer caption is cut and still closed by end-of-text, its largest id: the text tower
        finds the end by argmax. Raises ValueError for one str or a length below 2.
        """
        if isinstance(texts, str) or length < 2:
            raise ValueError(f"needs a list of captions and length >= 2, got {texts!r}, {length=}")
        batch = torch.zeros(len(texts), length, dtype=torch.int64)
        for row, text in zip(batch, texts, strict=True):
            ids = [self.sot, *self.encode(text)[: length - 2], self.eot]
            row[: len(ids)] = torch.tensor(ids)
        return batch

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids` up to end-of-text; every word is followed by a space.

        Raises ValueError for an id outside the vocabulary.
        """
        shown = ""
        for i in map(int, ids):
            if not 0 <= i < self.vocab_size:
                raise ValueError(f"id {i} is outside the vocabulary of {self.vocab_size} tokens")
            if i == self.eot:
                break
            if i != self.sot:
                shown += self._symbols[i].replace(END, " ")
        byte_of = {character: b for b, character in enumerate(self._alphabet)} | {" ": ord(" ")}
        return bytes(byte_of[character] for character in shown).decode("utf-8", errors="replace")

    def _encode_part(self, part: str) -> list[int]:
        if part in SPECIALS:
            return [self.sot + SPECIALS.index(part)]
        shown = [self._alphabet[b] for b in part.encode()]
        shown[-1] += END
        return apply_merges([self._ids[s] for s in shown], self._ranks, self._products)
