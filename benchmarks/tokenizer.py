"""Byte-pair encoding beside the `tokenizers` library (Rust) and a trainer that recounts.

Run: MINIDALLE_DATA=/path/to/data python benchmarks/tokenizer.py
Reads captions/*.txt there. A row runs ours and the peer in turn and keeps the least of `--rounds`.
Processor seconds add up all threads (the library trains and encodes batches on every core); the
ratio by the wall clock stands behind. A ratio below 1 means that ours is faster.
"""

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch

from minidalle.tokenizer import SPLIT, BPETokenizer, count_words, learn_merges, normalise

try:
    import tokenizers
except ImportError:
    sys.exit("this benchmark needs its peer: pip install tokenizers")


def library_train(texts: list[str], vocab_size: int) -> "tokenizers.Tokenizer":
    """Train the library's byte-pair encoding, configured as ours is."""
    their = tokenizers.Tokenizer(tokenizers.models.BPE())
    their.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            tokenizers.pre_tokenizers.Split(tokenizers.Regex(SPLIT), "isolated"),
        ]
    )
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False
    )
    their.train_from_iterator(texts, trainer)
    return their


def recounting_merges(word_counts: Counter[str], n: int) -> list[tuple[int, int]]:
    """Learn merges as textbooks do: count all pairs of all words anew for every merge."""
    words, merges = {tuple(map(ord, word)): c for word, c in word_counts.items()}, []
    for new in range(256, 256 + n):
        pairs: Counter[tuple[int, int]] = Counter()
        for word, count in words.items():
            for pair in pairwise(word):
                pairs[pair] += count
        if not pairs:
            break
        merges.append(min(pairs, key=lambda pair: (-pairs[pair], pair)))
        words = {_merged(word, merges[-1], new): count for word, count in words.items()}
    return merges


def _merged(word: tuple[int, ...], pair: tuple[int, int], new: int) -> tuple[int, ...]:
    out, i = [], 0
    while i < len(word):
        hit = word[i : i + 2] == pair
        out.append(new if hit else word[i])
        i += 2 if hit else 1
    return tuple(out)


def race(rounds: int, *runs: Callable[[], object]) -> tuple[list[object], list[list[float]]]:
    """Run each in turn, `rounds` times; return last results, least processor and wall seconds."""
    results, least = [None] * len(runs), [[float("inf")] * len(runs) for _ in range(2)]
    for _ in range(rounds):
        for i, run in enumerate(runs):
            began = time.process_time(), time.perf_counter()
            results[i] = run()
            ended = time.process_time(), time.perf_counter()
            for clock in range(2):
                least[clock][i] = min(least[clock][i], ended[clock] - began[clock])
    return results, least


def report(name: str, least: list[list[float]], target: str = "", peer: int = 1) -> None:
    """Print ours (entry 0) beside a peer: processor seconds, their ratio, the ratio by the wall."""
    (ours, their), (wall, their_wall) = ((clock[0], clock[peer]) for clock in least)
    print(f"{name:44s}{ours:9.4f}{their:9.4f}{ours / their:9.4f}{wall / their_wall:9.4f}  {target}")


def compare_training(texts: list[str], size: int, rounds: int) -> BPETokenizer:
    """Whole training, and training on each word once, which is nearly the merges alone."""
    once = list(count_words(texts))
    for kind, corpus in (("captions", texts), ("words", once)):
        (mine, their), least = race(
            rounds,
            lambda corpus=corpus: BPETokenizer.train(corpus, size),
            lambda corpus=corpus: library_train(corpus, size),
        )
        assert mine.vocab_size == their.get_vocab_size(), "the two must learn the same"
        report(f"train: {len(corpus)} {kind}, {mine.vocab_size} tokens", least, "at most 5")
    return BPETokenizer.train(texts, size)


def compare_recounting(texts: list[str], n: int, rounds: int) -> None:
    """Merges from word counts, which both trainers are given."""
    words = count_words(texts)
    (mine, _), ours = race(rounds, lambda: learn_merges(words, n), lambda: None)
    (plain, _), peer = race(1, lambda: recounting_merges(words, n), lambda: None)
    assert mine == plain, "the two must learn the same"
    least = [[ours[clock][0], peer[clock][0]] for clock in range(2)]
    report(f"{len(mine)} merges of {len(words)} words; peer recounts", least, "at most 0.01")


def compare_encoding(texts: list[str], mine: BPETokenizer, path: Path, rounds: int) -> None:
    """The first time with every word new, then with warm caches, alone, in a batch, dropping."""
    mine.save(path)
    fresh = iter([BPETokenizer.load(path) for _ in range(rounds)])
    their_fresh = iter([tokenizers.Tokenizer.from_file(str(path)) for _ in range(rounds)])

    def one_by_one(their: "tokenizers.Tokenizer") -> list[list[int]]:
        return [their.encode(text).ids for text in texts]

    _, least = race(
        rounds,
        lambda tokenizer=fresh: list(map(next(tokenizer).encode, texts)),
        lambda: one_by_one(next(their_fresh)),
    )
    report(f"encode: {len(texts)} captions, caches empty", least, "at most 3")
    their = tokenizers.Tokenizer.from_file(str(path))
    (ids, theirs, _), least = race(
        rounds,
        lambda: list(map(mine.encode, texts)),
        lambda: one_by_one(their),
        lambda: [encoding.ids for encoding in their.encode_batch(texts)],
    )
    assert ids == theirs, "the two must encode alike"
    report("encode: the same again", least, "at most 3")
    report("encode: the same again; peer in one batch", least, "at most 3", peer=2)
    compare_dropout(texts[::10], mine, their, rounds)


def compare_dropout(texts: list[str], mine: BPETokenizer, their, rounds: int) -> None:
    """A tenth of the merges passed over: seconds, and how much longer captions become."""
    their.model.dropout = 0.1
    generator = torch.Generator().manual_seed(0)
    (ids, theirs), least = race(
        rounds,
        lambda: [mine.encode(text, 0.1, generator) for text in texts],
        lambda: [encoding.ids for encoding in their.encode_batch(texts)],
    )
    report(f"encode: {len(texts)} captions, dropout 0.1", least)
    lengths = [len(mine.encode(text)) for text in texts], map(len, ids), map(len, theirs)
    plain, ours, peer = (sum(n) / len(texts) for n in lengths)
    print(f"mean length: {plain:.3f} plain; with dropout 0.1 ours {ours:.3f}, peer {peer:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocab", type=int, default=16_384)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--recount", type=int, default=2000, help="merges of the slow peer")
    args = parser.parse_args()
    folder = Path(os.environ.get("MINIDALLE_DATA", "data")) / "captions"
    files = sorted(folder.glob("*.txt"))
    if not files:
        sys.exit(f"no captions in {folder}: set MINIDALLE_DATA to the folder that holds captions/")
    texts = [normalise(line) for file in files for line in file.read_text("utf-8").splitlines()]
    print(f"tokenizers {tokenizers.__version__}; captions of {', '.join(f.name for f in files)}")
    print(f"{'processor seconds':44s}{'ours':>9s}{'peer':>9s}{'ratio':>9s}{'(wall)':>9s}  target")
    mine = compare_training(texts, args.vocab, args.rounds)
    compare_recounting(texts, args.recount, args.rounds)
    with tempfile.TemporaryDirectory() as scratch:
        compare_encoding(texts, mine, Path(scratch) / "tokenizer.json", args.rounds)


if __name__ == "__main__":
    main()
