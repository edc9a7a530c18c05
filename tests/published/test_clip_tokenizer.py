"""CLIP's own byte-pair encoding beside a plain loop, the `tokenizers` library and open_clip."""

import gzip

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minidalle.published.clip_tokenizer import CLIPTokenizer, clean
from minidalle.tokenizer import PAD, byte_alphabet

MERGES = (
    "i n,t h,th e</w>,in g</w>,in t,a t</w>,c at</w>,s at</w>,int o</w>,i n</w>,1 2,! !,' s</w>"
)
PATTERN = r"(?i)'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
# Whether a code point that Unicode gave out lately is a letter, libraries disagree.
# CLIP's pattern, which ignores case, drops U+0345: as a letter it is an iota, else a mark.
known = st.characters(exclude_categories=("Cn",), exclude_characters="\u0345")
any_text = st.text(known) | st.text("incathegso'T 12!é😀ſ&#;")
unhurried = settings(deadline=None)


def write(path, merges: str = MERGES, comma: str = ","):
    lines = ['"small#version: 0.2', *merges.split(comma)]
    path.write_bytes(gzip.compress("\n".join([*lines, ""]).encode()))
    return path


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> CLIPTokenizer:
    return CLIPTokenizer.load(write(tmp_path_factory.mktemp("clip") / "merges.txt.gz"))


@pytest.fixture(scope="module")
def library():
    """The same merges in the `tokenizers` library."""
    tokenizers = pytest.importorskip("tokenizers")
    merges = [tuple(line.split()) for line in MERGES.split(",")]
    symbols = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    symbols += [s + "</w>" for s in symbols] + ["".join(pair) for pair in merges]
    vocab = {symbol: i for i, symbol in enumerate(symbols)}
    model = tokenizers.models.BPE(vocab, merges, end_of_word_suffix="</w>")
    their = tokenizers.Tokenizer(model)
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(PATTERN), "removed", invert=True)
    byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    their.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([split, byte_level])
    return their


def symbols_of(tokenizer: CLIPTokenizer, text: str) -> list[str]:
    symbols = list(tokenizer._ids)
    return [symbols[i] for i in tokenizer.encode(text)]


def test_words_end_with_their_mark_and_spaces_vanish(tokenizer):
    want = ["cat</w>", "into</w>", "in</w>", "t", "o</w>"]
    assert symbols_of(tokenizer, "Cat  into in to") == want


def test_digits_stand_alone_and_contractions_split(tokenizer):
    want = ["1</w>", "2</w>", "cat</w>", "'s</w>", "!!", "!</w>"]
    assert symbols_of(tokenizer, "12 cat's !!!") == want


def test_ids_are_bytes_then_ends_then_merges_then_specials(tokenizer):
    assert tokenizer.encode("!") == [256]
    assert tokenizer.encode("ing") == [512 + 3]
    assert (tokenizer.sot, tokenizer.eot, tokenizer.vocab_size) == (525, 526, 527)


@unhurried
@given(any_text)
def test_encoding_is_the_librarys(tokenizer, library, text):
    assert tokenizer.encode(text) == library.encode(clean(text)).ids


@pytest.fixture(scope="module")
def open_clip():
    """open_clip's tokenizer; its package holds the published merges file."""
    return pytest.importorskip("open_clip.tokenizer", exc_type=ImportError)


def test_the_published_file_gives_the_published_ids(open_clip):
    published = CLIPTokenizer.load(open_clip.default_bpe())
    assert published.vocab_size == 49_408
    assert (published.sot, published.eot) == (49_406, 49_407)
    theirs = open_clip.SimpleTokenizer().encoder
    assert published._ids == {symbol: i for symbol, i in theirs.items() if i < 49_406}


def test_encoding_with_the_published_file_is_open_clips(open_clip):
    ours, their = CLIPTokenizer.load(open_clip.default_bpe()), open_clip.SimpleTokenizer()

    @unhurried
    @given(any_text)
    def check(text):
        assert ours.encode(text) == their.encode(text)

    check()


def test_specials_in_a_text_are_their_ids(tokenizer):
    assert tokenizer.encode("<|startoftext|>in<|endoftext|>") == [525, 512 + 9, 526]


def test_a_batch_is_cut_and_padded_and_a_typed_special_is_left_out(tokenizer):
    batch = tokenizer.encode_batch(["", "<|endoftext|>in<|startoftext|>", "in in in in"], 3)
    n = 512 + 9
    assert batch.tolist() == [[PAD, PAD, PAD], [n, PAD, PAD], [n, n, n]]
    assert batch.dtype == torch.int64


def test_a_plain_text_file_is_read_too(tmp_path, tokenizer):
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + MERGES.replace(",", "\n"))
    assert CLIPTokenizer.load(tmp_path / "merges.txt").encode("into") == tokenizer.encode("into")


def test_only_as_many_merges_as_clip_uses_are_read(tmp_path):
    alphabet = byte_alphabet()
    many = [f"{a} {b}" for a in alphabet for b in alphabet]  # 65,536 of them
    tokenizer = CLIPTokenizer.load(write(tmp_path / "long.txt.gz", "\n".join(many), "\n"))
    assert tokenizer.vocab_size == 49_408


@pytest.mark.parametrize(
    ("merges", "why"),
    [
        ("i n,in,t h", "'in' is not a pair"),
        ("i n,t h e", "'t h e' is not a pair"),
        ("i n,,t h", "'' is not a pair"),
        ("in g</w>,i n", "merge 0 of 'in' and 'g</w>' does not fit"),
        ("i n,i n", "merge 1 of 'i' and 'n' does not fit"),
        ("i 語", "does not fit"),
    ],
)
def test_merges_that_do_not_fit_are_refused_by_name(tmp_path, merges, why):
    path = write(tmp_path / "bad.txt.gz", merges)
    with pytest.raises(ValueError, match=rf"bad\.txt\.gz is no list of CLIP's merges: .*{why}"):
        CLIPTokenizer.load(path)


def test_damaged_and_foreign_files_are_refused_by_name(tmp_path):
    path = write(tmp_path / "bad.txt.gz")
    whole = path.read_bytes()
    flipped = whole[:20] + bytes([whole[20] ^ 255]) + whole[21:]
    for content in (
        whole[:-10],
        whole[:30],
        flipped,
        b"",
        b"{}",
        b"\xff\xfe",
        gzip.compress(b"i n\n"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"bad\.txt\.gz is no list of CLIP's merges"):
            CLIPTokenizer.load(path)
