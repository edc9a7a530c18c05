"""Byte-pair encoding of captions: frequent neighbours become one token. B captions.

Words are runs of a-z; merges happen inside words only. Every other character stands alone, as its
UTF-8 bytes: a space is a token, digits and punctuation never merge, no text is out of reach.

Source: Ramesh et al. 2021, arXiv:2102.12092, section 2.2, and github.com/openai/DALL-E issue 22;
Sennrich et al. 2016, arXiv:1508.07909; dropout: Provilkov et al. 2020, arXiv:1910.13267; the file
is the `tokenizers` library's (format 1.0), its visible alphabet GPT-2's (Radford et al. 2019).
"""

import json
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from heapq import heapify, heappop, heappush
from itertools import chain, pairwise, repeat
from pathlib import Path

import ftfy
import numpy as np
import torch
from torch import Generator, Tensor

from minidalle.files import write_text

PAD = -1  # fills a batch after a caption's end; never an id of the vocabulary
N_BYTES = 256
SPLIT = "[a-z]+|[^a-z]"  # a word, or one single other character
_WORD = re.compile("[a-z]+")
_PART = re.compile(SPLIT)
# A file of ours but for 'vocab' and 'merges'. The library then encodes normalised text as we do;
# ftfy cannot be written into it, so call `normalise` first.
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
_WORDS = {"type": "Split", "pattern": {"Regex": SPLIT}, "behavior": "Isolated", "invert": False}
_FILE = {
    "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
    "pre_tokenizer": {"type": "Sequence", "pretokenizers": [_WORDS, _BYTES]},
    "post_processor": None, "decoder": _BYTES,
}  # fmt: skip
_MODEL = {
    "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
    "end_of_word_suffix": None, "byte_fallback": False, "ignore_merges": False, "fuse_unk": False,
}  # fmt: skip


def byte_alphabet() -> list[str]:
    """Return 256 characters: entry b is how a file shows byte b; a space is 'Ġ'.

    The 188 printable Latin-1 bytes show as themselves, the other 68 as chr(256), chr(257), …
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = iter(range(256, 512))
    return [chr(b) if b in printable else chr(next(hidden)) for b in range(256)]


def normalise(text: str) -> str:
    """Return `text` repaired by ftfy, in lowercase, with single spaces and none at the ends.

    Any str will do. Surrogates, which UTF-8 cannot hold, are joined where they pair up and become
    U+FFFD, the replacement character, where they stand alone. Raises ValueError for no str.
    """
    if not isinstance(text, str):
        raise ValueError(f"a caption must be a str, got {text!r}")
    plain = text.isascii() and text.isprintable() and "&" not in text
    if not plain:  # ftfy leaves printable ASCII alone, but for entities such as &amp;
        text = ftfy.fix_text(text)
    return " ".join(text.split()).lower()


def count_words(texts: Iterable[str]) -> Counter[str]:
    """Count the words of normalised `texts`, which are read once and not kept.

    Raises ValueError for one str, whose captions would be its letters.
    """
    if isinstance(texts, str):
        raise ValueError(f"texts must be many captions, got one str: {texts[:40]!r}")
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(_WORD.findall(normalise(text)))
    return counts


def learn_merges(word_counts: Mapping[str, int], n: int) -> list[tuple[int, int]]:
    """Return up to `n` pairs of ids, merged most frequent first; merge i makes id 256 + i.

    Ties go to the pair with the smaller ids. Stops early when every word is one token.
    """
    corpus = _Corpus(word_counts)
    heap = [(-count, pair) for pair, count in corpus.pair_counts.items()]
    heapify(heap)
    merges: list[tuple[int, int]] = []
    while heap and len(merges) < n:
        count, pair = heappop(heap)
        now = corpus.pair_counts[pair]
        if now == -count:
            for new in corpus.merge(pair, chr(N_BYTES + len(merges))):
                heappush(heap, (-corpus.pair_counts[new], new))
            merges.append((ord(pair[0]), ord(pair[1])))
        elif now:  # fewer than when it was pushed: queue again, at its place
            heappush(heap, (-now, pair))
    return merges


class _Corpus:
    """Words and the counts of their pairs, kept right from merge to merge without a recount.

    The character of an id stands for the token, so a word is a str and a pair a str of two.
    """

    def __init__(self, word_counts: Mapping[str, int]):
        self.words, self.counts = list(word_counts), list(word_counts.values())
        self.pair_counts: Counter[str] = Counter()
        self.words_with = defaultdict(list)  # pair -> indices of the words it is in, or was in
        for i, word in enumerate(self.words):
            for j in range(len(word) - 1):
                self.pair_counts[word[j : j + 2]] += self.counts[i]
                self.words_with[word[j : j + 2]].append(i)

    def merge(self, pair: str, token: str) -> set[str]:
        """Replace `pair` by `token`, from the left, wherever it is; return the pairs that arise."""
        fresh = set()
        for i in self.words_with.pop(pair):
            old, count = self.words[i], self.counts[i]
            if pair not in old:
                continue
            self.words[i] = word = old.replace(pair, token)
            for j in range(len(old) - 1):
                self.pair_counts[old[j : j + 2]] -= count
            for j in range(len(word) - 1):
                new = word[j : j + 2]
                self.pair_counts[new] += count
                if token in new:
                    self.words_with[new].append(i)
                    fresh.add(new)
        return fresh


class BPETokenizer:
    """Encodes any text as ids, and gives it back.

    vocab: the token of each id, as bytes. merges: pairs of tokens, best first.
    """

    def __init__(self, vocab: Sequence[bytes], merges: Sequence[tuple[bytes, bytes]]):
        """Raises ValueError for a token twice, a merge twice, or a token that `vocab` lacks."""
        ids = {token: i for i, token in enumerate(vocab)}
        if len(ids) < len(vocab) or len(set(merges)) < len(merges):
            raise ValueError("a token or a merge appears twice")
        for token in chain((bytes([b]) for b in range(N_BYTES)), *merges, map(b"".join, merges)):
            if token not in ids:
                raise ValueError(f"token {token!r} is missing from the vocabulary")
        self.vocab, self.merges = list(vocab), list(merges)
        self._byte_ids = [ids[bytes([b])] for b in range(N_BYTES)]
        self._ranks = {(ids[a], ids[b]): rank for rank, (a, b) in enumerate(merges)}
        self._products = [ids[a + b] for a, b in merges]
        self._cache = Cache(self._encode_piece)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "BPETokenizer":
        """Learn at most `vocab_size` tokens from captions, which are read once and not kept.

        Fewer when every word of the captions is one token. Id b < 256 is byte b.
        Raises ValueError unless 256 <= vocab_size <= 1114112, the number of characters.
        """
        if not N_BYTES <= vocab_size <= sys.maxunicode + 1:
            raise ValueError(f"vocab_size must be from 256 to 1114112, got {vocab_size}")
        vocab, merges = [bytes([b]) for b in range(N_BYTES)], []
        for left, right in learn_merges(count_words(texts), vocab_size - N_BYTES):
            merges.append((vocab[left], vocab[right]))
            vocab.append(vocab[left] + vocab[right])
        return cls(vocab, merges)

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return len(self.vocab)

    def encode(
        self, text: str, dropout: float = 0.0, generator: Generator | None = None
    ) -> list[int]:
        """Return the ids of `normalise(text)`, however many.

        dropout in [0, 1]: the chance that a possible merge is passed over, at each step anew;
        draws come from `generator`, or torch's own when None. Raises ValueError outside [0, 1].
        """
        return self._encode(text, _coins(dropout, generator))

    def encode_batch(
        self,
        texts: Sequence[str],
        length: int,
        dropout: float = 0.0,
        generator: Generator | None = None,
    ) -> Tensor:
        """Return int64 (B, length): the ids of each caption, then PAD.

        A caption longer than `length` is cut. See `encode` for the rest.
        Raises ValueError for one str, or for a length below 1.
        """
        if isinstance(texts, str) or length < 1:
            raise ValueError(f"needs a list of captions and length >= 1, got {texts!r}, {length=}")
        coins, flat = _coins(dropout, generator), []
        for text in texts:
            ids = self._encode(text, coins)[:length]
            flat += ids
            flat += [PAD] * (length - len(ids))
        return torch.from_numpy(np.array(flat, dtype=np.int64)).view(len(texts), length)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids`; PAD is skipped, bytes that are not UTF-8 show as U+FFFD.

        Raises ValueError for an id outside the vocabulary.
        """
        ids = [i for i in map(int, ids) if i != PAD]
        for i in ids:
            if not 0 <= i < len(self.vocab):
                raise ValueError(f"id {i} is outside the vocabulary of {len(self.vocab)} tokens")
        return b"".join(self.vocab[i] for i in ids).decode("utf-8", errors="replace")

    def save(self, path: str | Path) -> None:
        """Write one JSON file that `tokenizers.Tokenizer.from_file` reads too."""
        alphabet = byte_alphabet()
        show = {token: "".join(alphabet[b] for b in token) for token in self.vocab}
        model = _MODEL | {
            "vocab": {show[token]: i for i, token in enumerate(self.vocab)},
            "merges": [f"{show[left]} {show[right]}" for left, right in self.merges],
        }
        write_text(path, json.dumps(_FILE | {"model": model}, ensure_ascii=False, indent=1))

    @classmethod
    def load(cls, path: str | Path) -> "BPETokenizer":
        """Read a file of `save`. Raises ValueError, naming the file, where it is anything else."""
        byte_of = {character: b for b, character in enumerate(byte_alphabet())}

        def hide(shown: str) -> bytes:
            return bytes(byte_of[character] for character in shown)

        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            ids, merges = content["model"].pop("vocab"), content["model"].pop("merges")
            if content != _FILE | {"model": _MODEL}:
                raise ValueError("it splits or merges text by other rules than ours")
            if list(ids.values()) != list(range(len(ids))):
                raise ValueError(f"the ids of its {len(ids)} tokens are not 0, 1, 2, …")
            pairs = [merge.split(" ") for merge in merges]
            return cls([*map(hide, ids)], [(hide(left), hide(right)) for left, right in pairs])
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path} is not a tokenizer that minidalle saved: {error}") from None

    def _encode(self, text: str, coins: Iterator[bool] | None = None) -> list[int]:
        pieces = normalise(text).split(" ")
        if coins is None:
            encoded = map(self._cache.__getitem__, pieces)
        else:
            encoded = (self._encode_piece(piece, coins) for piece in pieces)
        return [*chain.from_iterable(encoded)][1:]  # no space stands before the first piece

    def _encode_piece(self, piece: str, coins: Iterator[bool] | None = None) -> list[int]:
        """Encode a space and then `piece`, which holds no space."""
        ids = [self._byte_ids[ord(" ")]]
        for part in _PART.findall(piece):
            symbols = [self._byte_ids[b] for b in part.encode()]
            ids += apply_merges(symbols, self._ranks, self._products, coins)
        return ids


def apply_merges(
    symbols: list, ranks: Mapping[tuple, int], products: Sequence, coins: Iterator | None = None
) -> list:
    """Merge the best pair of neighbours, the leftmost of equals, until no pair has a rank.

    symbols: ids or whatever the tokens are. ranks: pair -> rank, 0 is best; products: rank -> new
    symbol. A heap of candidates and a linked list of symbols take O(n log n) for n symbols.
    coins: BPE dropout; at each step every candidate is passed over when its coin says True, and
    we stop when all are. Tossing best first, only until one survives, is the same law.
    """
    if len(symbols) < 2:
        return symbols
    # A linked list of symbols, and a heap of the pairs that have a rank.
    symbols = [*symbols, None]  # None has no rank: it ends the word, and stands before it at -1
    before, after = [*range(-1, len(symbols) - 1)], [*range(1, len(symbols)), 0]
    heap = [(ranks[pair], i) for i, pair in enumerate(pairwise(symbols)) if pair in ranks]
    heapify(heap)
    passed = []
    while heap:
        rank, i = heappop(heap)
        j = after[i]
        if ranks.get((symbols[i], symbols[j])) != rank:
            continue  # an earlier merge took one of the two
        if coins and next(coins):
            passed.append((rank, i))
            continue
        # Merge symbols i and j into i; the pairs on both sides of it are new candidates.
        symbols[i], symbols[j], after[i] = products[rank], None, after[j]
        before[after[j]] = i
        for k in (before[i], i):
            if (pair := (symbols[k], symbols[after[k]])) in ranks:
                heappush(heap, (ranks[pair], k))
        while passed:
            heappush(heap, passed.pop())
    return [s for s in symbols if s is not None]


def _coins(chance: float, generator: Generator | None) -> Iterator[bool] | None:
    """Return endless coins that are True with `chance`; None, which tosses nothing, for 0."""
    if not 0 <= chance <= 1:
        raise ValueError(f"dropout must be from 0 to 1, got {chance}")
    # In blocks, because one draw costs as much as 128.
    blocks = ((torch.rand(n, generator=generator) < chance).tolist() for n in repeat(128))
    return chain.from_iterable(blocks) if chance else None


class Cache(dict):
    """Remembers what `encode` returned for short pieces; forgets all when full."""

    def __init__(self, encode: Callable[[str], list[int]]):
        self.encode = encode

    def __missing__(self, piece: str) -> list[int]:
        ids = self.encode(piece)
        if len(self) >= 2**16:
            self.clear()
        if len(piece) <= 64:
            self[piece] = ids
        return ids
