"""The tokenizer's file beside the `tokenizers` library: what both read, and what we refuse."""

import json
import os

import pytest

from minidalle.bpe_file import SPLIT, byte_alphabet, read_bpe
from minidalle.tokenizer import BPETokenizer, normalise

TEXTS = ["the cat sat on the mat, isn't it", "thé café thé café thé", "12 cats 😀😀 ñ"] * 3


@pytest.fixture
def path(tmp_path):
    """A file of ours."""
    BPETokenizer.train(TEXTS, 266).save(tmp_path / "tokenizer.json")
    return tmp_path / "tokenizer.json"


def library_file(path, words_first: bool, alphabet: bool = True, normalizer=None, **trainer):
    """Let the library train and write; return what it trained."""
    tokenizers = pytest.importorskip("tokenizers")
    their = tokenizers.Tokenizer(tokenizers.models.BPE())
    steps = [
        tokenizers.pre_tokenizers.Split(tokenizers.Regex(SPLIT), "isolated"),
        tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    their.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(steps if words_first else steps[::-1])
    if normalizer:
        their.normalizer = normalizer
    letters = tokenizers.pre_tokenizers.ByteLevel.alphabet() if alphabet else []
    their.train_from_iterator(
        [normalise(text) for text in TEXTS],
        tokenizers.trainers.BpeTrainer(
            vocab_size=290, initial_alphabet=letters, show_progress=False, **trainer
        ),
    )
    their.save(str(path))
    return their


def test_the_alphabet_shows_bytes_as_gpt2_does():
    alphabet = byte_alphabet()
    assert len(set(alphabet)) == 256
    assert "".join(alphabet[b] for b in b"a !~\n") == "aĠ!~Ċ"
    assert all(character.isprintable() and not character.isspace() for character in alphabet)


def test_the_alphabet_is_the_librarys():
    tokenizers = pytest.importorskip("tokenizers")
    assert sorted(byte_alphabet()) == sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())


def test_what_is_saved_is_loaded(path):
    ours = BPETokenizer.train(TEXTS, 266)
    read = BPETokenizer.load(path)
    assert (read.vocab, read.merges) == (ours.vocab, ours.merges)


def test_the_file_is_readable_by_people(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert '   "t h"' in [line.rstrip(",") for line in lines]
    assert '   "th": 256' in [line.rstrip(",") for line in lines]


def test_the_library_reads_our_file_and_encodes_alike(path):
    tokenizers = pytest.importorskip("tokenizers")
    ours, their = BPETokenizer.load(path), tokenizers.Tokenizer.from_file(str(path))
    assert their.get_vocab_size() == ours.vocab_size == 266
    for text in map(normalise, TEXTS):
        ids = ours.encode(text)
        assert their.encode(text).ids == ids
        assert their.decode(ids) == ours.decode(ids) == text


@pytest.mark.parametrize("words_first", [True, False])
@pytest.mark.parametrize("lowercase", [True, False])
def test_we_read_the_librarys_file_and_encode_alike(tmp_path, words_first, lowercase):
    tokenizers = pytest.importorskip("tokenizers")
    normalizer = tokenizers.normalizers.Lowercase() if lowercase else None
    their = library_file(tmp_path / "their.json", words_first, normalizer=normalizer)
    ours = BPETokenizer.load(tmp_path / "their.json")
    for text in map(normalise, TEXTS):
        assert ours.encode(text) == their.encode(text).ids
        assert ours.decode(ours.encode(text)) == text
    assert ((b"\xc3", b"\xa9") in ours.merges) == words_first  # é, as a word of its own, merges


def test_a_library_file_goes_through_ours_unchanged_in_meaning(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    their = library_file(tmp_path / "their.json", words_first=True)
    BPETokenizer.load(tmp_path / "their.json").save(tmp_path / "ours.json")
    again = tokenizers.Tokenizer.from_file(str(tmp_path / "ours.json"))
    for text in map(normalise, TEXTS):
        assert again.encode(text).ids == their.encode(text).ids


# --- what is refused

BERT = {"type": "BertNormalizer", "lowercase": True}
GPT2 = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
REFUSED = {
    "another model": (("model", "type"), "WordPiece", "model.type is 'WordPiece'"),
    "dropout": (("model", "dropout"), 0.1, "model.dropout is 0.1"),
    "an unknown token": (("model", "unk_token"), "[UNK]", "unk_token"),
    "CLIP's end of word": (("model", "end_of_word_suffix"), "</w>", "end_of_word_suffix"),
    "WordPiece's prefix": (("model", "continuing_subword_prefix"), "##", "continuing_subword"),
    "byte fallback": (("model", "byte_fallback"), True, "byte_fallback"),
    "whole words first": (("model", "ignore_merges"), True, "ignore_merges"),
    "special tokens": (("added_tokens",), [{"id": 0, "content": "[PAD]"}], "added_tokens"),
    "truncation": (("truncation",), {"max_length": 9}, "truncation"),
    "padding": (("padding",), {"pad_id": 0}, "padding"),
    "a normalizer": (("normalizer",), BERT, "normalizer is .*Bert"),
    "a template": (("post_processor",), {"type": "TemplateProcessing"}, "post_processor"),
    "GPT-2's words": (("pre_tokenizer",), GPT2, "pre_tokenizer is not"),
    "no words": (("pre_tokenizer",), None, "pre_tokenizer is not"),
    "no model": (("model",), None, "no 'model'"),
}
DAMAGED = {
    "no vocabulary": (("model", "vocab"), None, "'vocab' must be an object"),
    "no merges": (("model", "merges"), {}, "'merges' a list"),
    "an id twice": (("model", "vocab", "a"), 98, "are not 0 to 265"),
    "an id left out": (("model", "vocab", "a"), 1000, "are not 0 to 265"),
    "a textual id": (("model", "vocab", "a"), "97", "not a whole number"),
    "a foreign character": (("model", "vocab", "語"), 266, "stands for no byte"),
    "a lonely merge": (("model", "merges", 0), "th", "not a pair"),
    "a triple merge": (("model", "merges", 0), ["t", "h", "e"], "not a pair"),
    "a number as merge": (("model", "merges", 0), 7, "not a pair"),
    "numbers in a merge": (("model", "merges", 0), [1, 2], "not a pair"),
    "a merge of strangers": (("model", "merges", 0), ["t", "zzz"], "missing from the vocabulary"),
    "a merge twice": (("model", "merges", 1), "t h", "twice"),
}


def spoil(path, keys, value):
    content = json.loads(path.read_text(encoding="utf-8"))
    part = content
    for key in keys[:-1]:
        part = part[key]
    part[keys[-1]] = value
    path.write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize(("keys", "value", "why"), REFUSED.values(), ids=REFUSED)
def test_a_foreign_file_is_refused_by_name(path, keys, value, why):
    spoil(path, keys, value)
    with pytest.raises(ValueError, match=rf"tokenizer\.json is not a tokenizer that.*{why}"):
        BPETokenizer.load(path)


@pytest.mark.parametrize(("keys", "value", "why"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_refused_by_name(path, keys, value, why):
    spoil(path, keys, value)
    with pytest.raises(ValueError, match=rf"tokenizer\.json is damaged.*{why}"):
        BPETokenizer.load(path)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"\x1f\x8b\x08\x00", b"#version: 0.2\ni n"]
)
def test_what_is_no_json_is_refused_by_name(tmp_path, content):
    (tmp_path / "some.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"some\.json is not a tokenizer file"):
        read_bpe(tmp_path / "some.json")


@pytest.mark.parametrize("content", ["[]", "3", "null", '"text"', "{}", '{"model": []}'])
def test_other_json_is_refused_by_name(tmp_path, content):
    (tmp_path / "some.json").write_text(content)
    with pytest.raises(ValueError, match=r"some\.json is not .* no 'model'"):
        read_bpe(tmp_path / "some.json")


def test_every_cut_of_a_file_is_refused(path):
    whole = path.read_bytes()
    for end in range(0, len(whole) - 1, 97):
        path.write_bytes(whole[:end])
        with pytest.raises(ValueError, match=r"tokenizer\.json is not a tokenizer file"):
            BPETokenizer.load(path)


def test_a_library_file_that_lacks_bytes_is_refused(tmp_path):
    library_file(tmp_path / "their.json", words_first=False, alphabet=False)
    with pytest.raises(ValueError, match="missing from the vocabulary"):
        BPETokenizer.load(tmp_path / "their.json")


def test_a_library_file_with_special_tokens_is_refused(tmp_path):
    library_file(tmp_path / "their.json", words_first=False, special_tokens=["[PAD]"])
    with pytest.raises(ValueError, match="added_tokens"):
        BPETokenizer.load(tmp_path / "their.json")


def test_a_merge_that_the_library_never_makes_is_refused(tmp_path):
    library_file(tmp_path / "their.json", words_first=True)
    content = json.loads((tmp_path / "their.json").read_text(encoding="utf-8"))
    content["pre_tokenizer"]["pretokenizers"].reverse()
    (tmp_path / "their.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"their\.json: its words never let .* merge"):
        BPETokenizer.load(tmp_path / "their.json")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json"):
        BPETokenizer.load(tmp_path / "nowhere.json")


# --- writing


def test_saving_makes_the_folder_and_leaves_one_file(tmp_path):
    BPETokenizer.train(TEXTS, 260).save(tmp_path / "new" / "tokenizer.json")
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["tokenizer.json"]


def test_an_interrupted_save_keeps_the_old_file(path, monkeypatch):
    old = path.read_bytes()

    def interrupted(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(OSError, match="disk full"):
        BPETokenizer.train(TEXTS, 260).save(path)
    assert path.read_bytes() == old
    assert list(path.parent.iterdir()) == [path]
