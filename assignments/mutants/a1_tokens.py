"""Wrong answers to assignment 1, each with the mistake in its name: `exercise__mistake`."""

from collections import Counter
from itertools import pairwise

import torch

from minidalle.tokenizer import PAD


def best_pair__by_frequency(words):
    pairs = Counter()
    for word, times in words.items():
        for pair in pairwise(word):
            pairs[pair] += times
    return min(pairs, key=lambda pair: (-pairs[pair], pair), default=None)


def best_pair__each_word_once(words):
    pairs, tokens = Counter(), Counter()
    for word in words:
        tokens.update(word)
        pairs.update(pairwise(word))
    score = {(a, b): count / (tokens[a] * tokens[b]) for (a, b), count in pairs.items()}
    return min(score, key=lambda pair: (-score[pair], pair), default=None)


def best_pair__tokens_once(words):
    pairs, tokens = Counter(), Counter()
    for word, times in words.items():
        tokens.update(word)  # forgets how often the word occurs
        for pair in pairwise(word):
            pairs[pair] += times
    score = {(a, b): count / (tokens[a] * tokens[b]) for (a, b), count in pairs.items()}
    return min(score, key=lambda pair: (-score[pair], pair), default=None)


def best_pair__ties_as_they_come(words):
    pairs, tokens = Counter(), Counter()
    for word, times in words.items():
        for token in word:
            tokens[token] += times
        for pair in pairwise(word):
            pairs[pair] += times
    return max(pairs, key=lambda p: pairs[p] / (tokens[p[0]] * tokens[p[1]]), default=None)


def best_pair__across_words(words):
    long_word = [token for word, times in words.items() for token in word * times]
    pairs, tokens = Counter(pairwise(long_word)), Counter(long_word)
    score = {(a, b): count / (tokens[a] * tokens[b]) for (a, b), count in pairs.items()}
    return min(score, key=lambda pair: (-score[pair], pair), default=None)


def best_pair__sum_below(words):
    pairs, tokens = Counter(), Counter()
    for word, times in words.items():
        for token in word:
            tokens[token] += times
        for pair in pairwise(word):
            pairs[pair] += times
    score = {(a, b): count / (tokens[a] + tokens[b]) for (a, b), count in pairs.items()}
    return min(score, key=lambda pair: (-score[pair], pair), default=None)


def best_pair__list(words):
    pairs, tokens = Counter(), Counter()
    for word, times in words.items():
        for token in word:
            tokens[token] += times
        for pair in pairwise(word):
            pairs[pair] += times
    score = {(a, b): count / (tokens[a] * tokens[b]) for (a, b), count in pairs.items()}
    best = min(score, key=lambda pair: (-score[pair], pair), default=None)
    return best and list(best)


def best_pair__fails_without_pairs(words):
    pairs, tokens = Counter(), Counter()
    for word, times in words.items():
        for token in word:
            tokens[token] += times
        for pair in pairwise(word):
            pairs[pair] += times
    score = {(a, b): count / (tokens[a] * tokens[b]) for (a, b), count in pairs.items()}
    return min(score, key=lambda pair: (-score[pair], pair))


def shrink__one_level(tokens, merges, vocab_size):
    small = []
    for token in tokens:
        small += [token] if token < vocab_size else merges[token - 256]
    return small


def shrink__border_token_kept(tokens, merges, vocab_size):
    small, rest = [], tokens[::-1]
    while rest:
        token = rest.pop()
        if token <= vocab_size:
            small.append(token)
        else:
            left, right = merges[token - 256]
            rest += [right, left]
    return small


def shrink__parts_swapped(tokens, merges, vocab_size):
    small, rest = [], tokens[::-1]
    while rest:
        token = rest.pop()
        if token < vocab_size:
            small.append(token)
        else:
            rest += merges[token - 256]
    return small


def shrink__always_bytes(tokens, merges, vocab_size):
    small, rest = [], tokens[::-1]
    while rest:
        token = rest.pop()
        if token < 256:
            small.append(token)
        else:
            left, right = merges[token - 256]
            rest += [right, left]
    return small


def shrink__drops_large_tokens(tokens, merges, vocab_size):
    return [token for token in tokens if token < vocab_size]


def shrink__uses_up_its_input(tokens, merges, vocab_size):
    small = []
    while tokens:
        token = tokens.pop(0)
        if token < vocab_size:
            small.append(token)
        else:
            tokens[:0] = merges[token - 256]
    return small


def shrink__merge_number_off_by_one(tokens, merges, vocab_size):
    small, rest = [], tokens[::-1]
    while rest:
        token = rest.pop()
        if token < vocab_size:
            small.append(token)
        else:
            left, right = merges[token - 257]
            rest += [right, left]
    return small


def fewest_tokens__longest_first(word, pieces):
    cut, start = [], 0
    while start < len(word):
        end = max(e for e in range(start + 1, len(word) + 1) if word[start:e] in pieces)
        cut.append(word[start:end])
        start = end
    return cut


def fewest_tokens__longest_from_the_right(word, pieces):
    cut, end = [], len(word)
    while end > 0:
        start = min(s for s in range(end) if word[s:end] in pieces)
        cut.insert(0, word[start:end])
        end = start
    return cut


def fewest_tokens__longest_anywhere(word, pieces):
    if not word:
        return []
    piece = max((p for p in pieces if p in word), key=len)
    left, _, right = word.partition(piece)
    rest = [fewest_tokens__longest_anywhere(part, pieces) for part in (left, right)]
    return [*rest[0], piece, *rest[1]]


def fewest_tokens__letters(word, pieces):
    return list(word)


def fewest_tokens__without_last_letter(word, pieces):
    best = [[]]
    for end in range(1, len(word)):
        starts = (start for start in range(end) if word[start:end] in pieces)
        best.append(min(([*best[start], word[start:end]] for start in starts), key=len))
    return best[-1]


def fewest_tokens__number(word, pieces):
    best = [0]
    for end in range(1, len(word) + 1):
        best.append(1 + min(best[start] for start in range(end) if word[start:end] in pieces))
    return best[-1]


def fewest_tokens__most(word, pieces):
    best = [[]]
    for end in range(1, len(word) + 1):
        starts = (start for start in range(end) if word[start:end] in pieces)
        best.append(max(([*best[start], word[start:end]] for start in starts), key=len))
    return best[-1]


def decode__each_token_alone(tokens, merges):
    pieces = [bytes([i]) for i in range(256)]
    for left, right in merges:
        pieces.append(pieces[left] + pieces[right])
    return "".join(pieces[t].decode("utf-8", errors="replace") for t in tokens if t != PAD)


def decode__forgets_the_pad(tokens, merges):
    pieces = [bytes([i]) for i in range(256)]
    for left, right in merges:
        pieces.append(pieces[left] + pieces[right])
    return b"".join(pieces[t] for t in tokens).decode("utf-8", errors="replace")


def decode__strict(tokens, merges):
    pieces = [bytes([i]) for i in range(256)]
    for left, right in merges:
        pieces.append(pieces[left] + pieces[right])
    return b"".join(pieces[t] for t in tokens if t != PAD).decode("utf-8")


def decode__ignores_bad_bytes(tokens, merges):
    pieces = [bytes([i]) for i in range(256)]
    for left, right in merges:
        pieces.append(pieces[left] + pieces[right])
    return b"".join(pieces[t] for t in tokens if t != PAD).decode("utf-8", errors="ignore")


def decode__latin_1(tokens, merges):
    pieces = [bytes([i]) for i in range(256)]
    for left, right in merges:
        pieces.append(pieces[left] + pieces[right])
    return b"".join(pieces[t] for t in tokens if t != PAD).decode("latin-1")


def decode__parts_swapped(tokens, merges):
    pieces = [bytes([i]) for i in range(256)]
    for left, right in merges:
        pieces.append(pieces[right] + pieces[left])
    return b"".join(pieces[t] for t in tokens if t != PAD).decode("utf-8", errors="replace")


def decode__stops_at_zero(tokens, merges):
    pieces = [bytes([i]) for i in range(256)]
    for left, right in merges:
        pieces.append(pieces[left] + pieces[right])
    kept = tokens[: tokens.index(PAD) - 1] if PAD in tokens else tokens
    return b"".join(pieces[t] for t in kept).decode("utf-8", errors="replace")


def pad_batch__zero(captions, length):
    return torch.tensor([caption[:length] + [0] * (length - len(caption)) for caption in captions])


def pad_batch__on_the_left(captions, length):
    rows = [[PAD] * (length - len(caption)) + caption[:length] for caption in captions]
    return torch.tensor(rows)


def pad_batch__float(captions, length):
    rows = [caption[:length] + [PAD] * (length - len(caption)) for caption in captions]
    return torch.tensor(rows, dtype=torch.float32)


def pad_batch__int32(captions, length):
    rows = [caption[:length] + [PAD] * (length - len(caption)) for caption in captions]
    return torch.tensor(rows, dtype=torch.int32)


def pad_batch__keeps_the_end(captions, length):
    rows = [caption[-length:] + [PAD] * (length - len(caption)) for caption in captions]
    return torch.tensor(rows)


def pad_batch__longest_caption(captions, length):
    length = max(map(len, captions))
    return torch.tensor([caption + [PAD] * (length - len(caption)) for caption in captions])


def pad_batch__room_for_an_end_token(captions, length):
    rows = [caption[: length - 1] + [PAD] * (length - len(caption)) for caption in captions]
    return torch.tensor([[*row, PAD][:length] for row in rows])


def pad_batch__changes_the_captions(captions, length):
    for caption in captions:
        caption.extend([PAD] * (length - len(caption)))
    return torch.tensor([caption[:length] for caption in captions])


def pad_batch__list(captions, length):
    return [caption[:length] + [PAD] * (length - len(caption)) for caption in captions]
