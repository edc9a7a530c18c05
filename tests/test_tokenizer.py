"""Byte-pair encoding beside a recounting trainer, a plain encoder and the `tokenizers` library."""

import copy
import json
import math
import os
import pickle
import random
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import ftfy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minidalle.tokenizer import PAD, SPLIT, BPETokenizer, byte_alphabet, normalise

SENTENCES = (
    "A small red circle above a large blue square. The circle isn't filled; it's 3 pixels wide!",
    "the cats sat on the mat, then the other cat sat on the other mat",
    "Über-schöne CAFÉ naïve façade 東京タワー 👩‍👩‍👧 emoji 😀😀 ½ ﬁne",
    "aaaa aaa aa a aaaaaaa abababab babab banana bandana",
)
unhurried = settings(deadline=None)  # the box may be busy
# All of Unicode, lone surrogates included; and words that merge.
any_text = st.text(st.characters()) | st.text("abcnst thei")


@pytest.fixture(scope="module")
def tokenizer() -> BPETokenizer:
    return BPETokenizer.train(SENTENCES * 3, 320)


def syllables(n: int, seed: int) -> list[str]:
    """Draw n captions of made-up words that share many pairs."""
    rng = random.Random(seed)
    parts = ["ba", "ab", "a", "st", "ing", "in", "g", "the", "e", "ou"]
    words = ["".join(rng.choices(parts, k=rng.randint(1, 5))) for _ in range(60)]
    return [" ".join(rng.choices(words, k=rng.randint(0, 9))) for _ in range(n)]


def recounted_merges(texts, vocab_size: int) -> list[tuple[bytes, bytes]]:
    """Count all pairs of all words anew for every merge."""
    words = Counter()
    for text in texts:
        word = ""
        for character in normalise(text) + " ":
            if "a" <= character <= "z":
                word += character
            else:
                words[tuple(word.encode())] += 1
                word = ""
    vocab, merges = [bytes([b]) for b in range(256)], []
    while len(vocab) < vocab_size:
        pairs = Counter()
        for word, n in words.items():
            for pair in pairwise(word):
                pairs[pair] += n
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append((vocab[best[0]], vocab[best[1]]))
        vocab.append(b"".join(merges[-1]))
        words = Counter({replace(w, best, len(vocab) - 1): n for w, n in words.items()})
    return merges


def replace(word: tuple, pair: tuple, new) -> tuple:
    out, i = [], 0
    while i < len(word):
        hit = word[i : i + 2] == pair
        out.append(new if hit else word[i])
        i += 2 if hit else 1
    return tuple(out)


def plain_encode(merges: list[tuple[bytes, bytes]], text: str) -> list[bytes]:
    """Split into words by hand, then replace pair after pair in the order of their ranks."""
    words = [[]]
    for character in text:
        if not ("a" <= character <= "z" and words[-1] and words[-1][-1].islower()):
            words.append([])
        words[-1] += [bytes([b]) for b in character.encode()]
    for pair in merges:
        words = [replace(tuple(word), pair, pair[0] + pair[1]) for word in words]
    return [token for word in words for token in word]


def library_tokenizer(texts, vocab_size: int, words_first: bool = False):
    """Train the `tokenizers` library's byte-pair encoding, configured as ours is."""
    tokenizers = pytest.importorskip("tokenizers")
    steps = [
        tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        tokenizers.pre_tokenizers.Split(tokenizers.Regex(SPLIT), "isolated"),
    ]
    their = tokenizers.Tokenizer(tokenizers.models.BPE())
    their.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(steps[::-1] if words_first else steps)
    their.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False
    )
    their.train_from_iterator((normalise(text) for text in texts), trainer)
    return their


def merges_of(their) -> list[tuple[bytes, bytes]]:
    """Read the library's merges as bytes; their parts are a-z only."""
    return [tuple(p.encode() for p in m) for m in json.loads(their.to_str())["model"]["merges"]]


def captions() -> list[str]:
    folder = Path(os.environ.get("MINIDALLE_DATA", "data")) / "captions"
    if not folder.is_dir():
        pytest.skip("set MINIDALLE_DATA to a folder with captions/")
    return (folder / "coco_val2017_captions.txt").read_text("utf-8").splitlines()


# --- normalise


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("  A Red\t\n square ", "a red square"),
        ("caf\u00c3\u00a9 &amp; bar", "café & bar"),
        ("“curly” ﬁne", '"curly" fine'),
        ("\u3000wide\u00a0space\u2003", "wide space"),
        ("pair \ud83d\ude00 and lone \ud83d \ude00!", "pair 😀 and lone \ufffd \ufffd!"),
        ("", ""),
        (" \n", ""),
    ],
)
def test_normalise_repairs_and_lowers_these(text, want):
    assert normalise(text) == want


@unhurried
@given(any_text | st.text(st.characters(max_codepoint=127)))
def test_normalise_is_ftfy_then_white_space_then_lowercase(text):
    assert normalise(text) == " ".join(ftfy.fix_text(text).split()).lower()
    normalise(text).encode("utf-8")  # no surrogate is left


# --- training


@pytest.mark.parametrize("texts", [SENTENCES, syllables(200, 0), ["a"], []])
def test_merges_are_those_of_a_trainer_that_recounts(texts):
    assert BPETokenizer.train(texts, 330).merges == recounted_merges(texts, 330)


@unhurried
@given(st.lists(st.text("abc ", max_size=20), max_size=12))
def test_merges_of_repetitive_words_are_those_of_a_trainer_that_recounts(texts):
    assert BPETokenizer.train(texts, 276).merges == recounted_merges(texts, 276)


@settings(unhurried, max_examples=40)
@given(st.lists(any_text | st.text("abc "), max_size=8))
def test_merges_of_any_text_are_the_librarys(texts):
    assert BPETokenizer.train(texts, 276).merges == merges_of(library_tokenizer(texts, 276))


@pytest.mark.parametrize("words_first", [False, True])
def test_merges_and_ids_of_coco_captions_are_the_librarys(words_first):
    texts = captions()
    ours, their = BPETokenizer.train(texts, 16_384), library_tokenizer(texts, 16_384, words_first)
    assert ours.merges == merges_of(their)
    assert len(ours.merges) > 9000
    tokens = [their.id_to_token(i).encode() for i in range(256, their.get_vocab_size())]
    assert ours.vocab[256:] == tokens


def test_training_reads_captions_once_and_keeps_none():
    alive, most = 0, 0

    class Caption(str):
        def __del__(self):
            nonlocal alive
            alive -= 1

    def stream():
        nonlocal alive, most
        for i in range(500):
            alive += 1
            most = max(most, alive)
            yield Caption(f"a caption of number {i}")

    BPETokenizer.train(stream(), 270)
    assert most <= 2


def test_smallest_vocabulary_is_the_bytes():
    tokenizer = BPETokenizer.train(SENTENCES, 256)
    assert tokenizer.vocab_size == 256
    assert tokenizer.encode("Añ b") == list("añ b".encode())


# --- encoding and decoding


@unhurried
@given(any_text)
def test_decode_gives_the_normalised_text_back(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == normalise(text)
    assert all(0 <= i < tokenizer.vocab_size for i in ids)


@unhurried
@given(any_text)
def test_encoding_is_pair_after_pair_by_rank(tokenizer, text):
    want = plain_encode(tokenizer.merges, normalise(text))
    assert [tokenizer.vocab[i] for i in tokenizer.encode(text)] == want


@unhurried
@given(any_text | st.lists(st.sampled_from(SENTENCES)).map(" ".join))
def test_encoding_is_the_librarys(tokenizer, tmp_path_factory, text):
    tokenizers = pytest.importorskip("tokenizers")
    path = tmp_path_factory.getbasetemp() / "for_library.json"
    if not path.exists():
        tokenizer.save(path)
    their = tokenizers.Tokenizer.from_file(str(path))
    assert tokenizer.encode(text) == their.encode(normalise(text)).ids


def test_encoding_of_coco_captions_is_the_librarys(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    texts = captions()
    ours = BPETokenizer.train(texts[::3], 4096)
    ours.save(tmp_path / "tokenizer.json")
    their = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    want = their.encode_batch([normalise(text) for text in texts])
    assert [ours.encode(text) for text in texts] == [encoding.ids for encoding in want]


def test_a_very_long_word_takes_no_quadratic_time():
    tokenizer, seconds = BPETokenizer.train(["aaaa"], 258), []  # aa, then aaaa
    for n in (1_000, 4_000):
        began = time.process_time()
        assert tokenizer.encode("a" * (4 * n + 3)) == [257] * n + [256, ord("a")]
        seconds.append(time.process_time() - began)
    assert seconds[1] < 10 * seconds[0]  # quadratic: 16


def test_the_cache_does_not_grow_for_ever(tokenizer):
    fresh = BPETokenizer(tokenizer.vocab, tokenizer.merges)
    for start in range(0, 80_000, 1000):
        fresh.encode(" ".join(map(str, range(start, start + 1000))))
    for n in (64, 65, 1000):
        fresh.encode("x" * n)
    assert 0 < len(fresh._cache) <= 2**16
    assert max(map(len, fresh._cache)) == 64


def test_a_copy_for_a_worker_encodes_alike(tokenizer):
    want = tokenizer.encode(SENTENCES[0])
    assert pickle.loads(pickle.dumps(tokenizer)).encode(SENTENCES[0]) == want
    assert copy.deepcopy(tokenizer).encode(SENTENCES[0]) == want


def test_decode_skips_pads_and_shows_broken_bytes(tokenizer):
    assert PAD < 0  # so it is no id, whatever the vocabulary
    assert tokenizer.decode(torch.tensor([104, 105, PAD, PAD])) == "hi"
    assert tokenizer.decode([0xC3]) == "\ufffd"


def test_a_vocabulary_must_hold_bytes_and_products():
    single = [bytes([b]) for b in range(256)]
    with pytest.raises(ValueError, match="b'ab' is missing"):
        BPETokenizer(single, [(b"a", b"b")])
    with pytest.raises(ValueError, match="missing"):
        BPETokenizer(single[1:], [])
    with pytest.raises(ValueError, match="twice"):
        BPETokenizer([*single, b"a"], [])


@pytest.mark.parametrize("size", [255, 1_114_113])
def test_a_vocabulary_holds_all_bytes_and_no_more_tokens_than_there_are_characters(size):
    assert BPETokenizer.train(["aa"], 256 if size == 255 else 1_114_112).vocab_size <= 257
    with pytest.raises(ValueError, match=f"from 256 to 1114112, got {size}"):
        BPETokenizer.train(["aa"], size)


# --- batches


def test_a_batch_is_each_caption_then_pads(tokenizer):
    texts = ["", *SENTENCES]
    batch = tokenizer.encode_batch(texts, 100)
    assert batch.dtype == torch.int64
    assert batch.shape == (5, 100)
    for row, text in zip(batch.tolist(), texts, strict=True):
        ids = tokenizer.encode(text)
        assert row == ids + [PAD] * (100 - len(ids))


def test_a_long_caption_is_cut(tokenizer):
    ids = tokenizer.encode(SENTENCES[0])
    assert tokenizer.encode_batch([SENTENCES[0]], 7).tolist() == [ids[:7]]


# --- dropout


def passing_over(word: tuple, ranks: dict, p: float) -> Counter:
    """Return the probability of every outcome of algorithm 1 of Provilkov et al.

    At each step every candidate is left out with chance p; the best that remains is merged.
    """
    pairs = [(ranks[word[i : i + 2]], i) for i in range(len(word) - 1) if word[i : i + 2] in ranks]
    law = Counter({word: p ** len(pairs)})
    for better, (_, i) in enumerate(sorted(pairs)):
        merged = (*word[:i], word[i] + word[i + 1], *word[i + 2 :])
        for outcome, chance in passing_over(merged, ranks, p).items():
            law[outcome] += p**better * (1 - p) * chance
    return law


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_follows_the_law_of_algorithm_1(tokenizer, p):
    word, n = "banana", 2000
    ranks = {pair: rank for rank, pair in enumerate(tokenizer.merges)}
    law = passing_over(tuple(bytes([b]) for b in word.encode()), ranks, p)
    generator = torch.Generator().manual_seed(0)
    seen = Counter(
        tuple(tokenizer.vocab[i] for i in tokenizer.encode(word, p, generator)) for _ in range(n)
    )
    assert set(seen) <= set(law)
    assert math.isclose(sum(law.values()), 1)
    for outcome, chance in law.items():
        assert abs(seen[outcome] / n - chance) < 4 * math.sqrt(chance * (1 - chance) / n) + 1e-9


@pytest.mark.parametrize("p", [0.05, 0.1, 0.5])
def test_dropout_lengthens_as_the_librarys_does(tokenizer, tmp_path, p):
    tokenizers = pytest.importorskip("tokenizers")
    texts = SENTENCES * 100
    tokenizer.save(tmp_path / "tokenizer.json")
    their = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    their.model.dropout = p
    want = sum(len(e.ids) for e in their.encode_batch([normalise(text) for text in texts]))
    generator = torch.Generator().manual_seed(0)
    batch = tokenizer.encode_batch(texts, 200, p, generator)
    assert math.isclose((batch != PAD).sum(), want, rel_tol=0.02)
    assert want > sum(len(tokenizer.encode(text)) for text in texts)


@unhurried
@given(any_text, st.sampled_from([0.1, 0.5, 0.99]))
def test_dropout_never_changes_the_text(tokenizer, text, p):
    ids = tokenizer.encode(text, p, torch.Generator().manual_seed(0))
    assert tokenizer.decode(ids) == normalise(text)


@unhurried
@given(any_text)
def test_no_dropout_is_plain_and_full_dropout_is_bytes(tokenizer, text):
    generator = torch.Generator().manual_seed(0)
    state = generator.get_state()
    assert tokenizer.encode(text, 0.0, generator) == tokenizer.encode(text)
    assert torch.equal(generator.get_state(), state)
    assert bytes(tokenizer.encode(text, 1.0, generator)) == normalise(text).encode()


def test_dropout_is_decided_by_the_generator(tokenizer):
    def draw(seed):
        return tokenizer.encode_batch(SENTENCES, 120, 0.5, torch.Generator().manual_seed(seed))

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


# --- the file


@pytest.fixture
def path(tmp_path):
    """A file of ours, of 266 tokens."""
    BPETokenizer.train(["the cat sat on the mat, isn't it", "thé the the"] * 9, 266).save(
        tmp_path / "tokenizer.json"
    )
    return tmp_path / "tokenizer.json"


def test_the_alphabet_is_the_librarys():
    tokenizers = pytest.importorskip("tokenizers")
    assert sorted(byte_alphabet()) == sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    assert "".join(byte_alphabet()[b] for b in b"a !~\n") == "aĠ!~Ċ"


def test_what_is_saved_is_loaded_and_saved_alike(path, tokenizer):
    read = BPETokenizer.load(path)
    read.save(path.with_name("again.json"))
    assert path.with_name("again.json").read_bytes() == path.read_bytes()
    tokenizer.save(path)
    read = BPETokenizer.load(path)
    assert (read.vocab, read.merges) == (tokenizer.vocab, tokenizer.merges)


def test_the_file_is_readable_by_people(path):
    lines = [line.rstrip(",") for line in path.read_text(encoding="utf-8").splitlines()]
    assert '   "t h"' in lines and '   "th": 256' in lines


def test_the_library_decodes_with_our_file_as_we_do(path):
    tokenizers = pytest.importorskip("tokenizers")
    ours, their = BPETokenizer.load(path), tokenizers.Tokenizer.from_file(str(path))
    assert their.get_vocab_size() == ours.vocab_size == 266
    for text in map(normalise, SENTENCES):
        assert their.decode(ours.encode(text)) == ours.decode(ours.encode(text)) == text


BERT = {"type": "BertNormalizer", "lowercase": True}
GPT2 = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
RULES, IDS = "other rules than ours", "ids of its .* are not 0, 1"
FOREIGN = [
    (("model", "type"), "WordPiece", RULES),
    (("model", "dropout"), 0.1, RULES),
    (("model", "byte_fallback"), True, RULES),
    (("added_tokens",), [{"id": 0, "content": "[PAD]"}], RULES),
    (("truncation",), {"max_length": 9}, RULES),
    (("normalizer",), BERT, RULES),
    (("pre_tokenizer",), GPT2, RULES),
    (("model",), None, ""),
    (("model", "vocab"), None, ""),
    (("model", "vocab", "a"), 98, IDS),
    (("model", "vocab", "a"), 1000, IDS),
    (("model", "vocab", "a"), "97", IDS),
    (("model", "vocab", "語"), 266, "語"),
    (("model", "merges"), 7, ""),
    (("model", "merges", 0), "th", "not enough values"),
    (("model", "merges", 0), "t h e", "too many values"),
    (("model", "merges", 0), 7, ""),
    (("model", "merges", 0), "t zzz", "missing from the vocabulary"),
    (("model", "merges", 1), "t h", "twice"),
]


@pytest.mark.parametrize(("keys", "value", "why"), FOREIGN)
def test_a_foreign_or_damaged_file_is_refused_by_name(path, keys, value, why):
    content = part = json.loads(path.read_text(encoding="utf-8"))
    for key in keys[:-1]:
        part = part[key]
    part[keys[-1]] = value
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"tokenizer\.json is not a tokenizer that.*{why}"):
        BPETokenizer.load(path)


OTHER = [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"[]", b"3", b"null", b'"text"', b"{}",
         b'{"model": []}']  # fmt: skip


@pytest.mark.parametrize("content", OTHER)
def test_other_json_and_no_json_are_refused_by_name(path, content):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"tokenizer\.json is not a tokenizer that"):
        BPETokenizer.load(path)


def test_every_cut_of_a_file_is_refused(path):
    whole = path.read_bytes()
    for end in range(0, len(whole) - 1, 97):
        path.write_bytes(whole[:end])
        with pytest.raises(ValueError, match=r"tokenizer\.json is not a tokenizer that"):
            BPETokenizer.load(path)


def test_a_file_of_the_librarys_own_training_is_refused(tmp_path):
    library_tokenizer(SENTENCES, 290).save(str(tmp_path / "their.json"))
    with pytest.raises(ValueError, match=r"their\.json is not a tokenizer that minidalle saved"):
        BPETokenizer.load(tmp_path / "their.json")
