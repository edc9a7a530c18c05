"""A byte-pair vocabulary as one readable JSON file, in the format of the `tokenizers` library.

Bytes are written as GPT-2 writes them, one visible character each: a space is 'Ġ'.

Source: https://github.com/huggingface/tokenizers (format version 1.0);
Radford et al. 2019, `bytes_to_unicode` (the visible alphabet).
"""

import json
import re
from pathlib import Path

from minidalle.files import write_text

SPLIT = "[a-z]+|[^a-z]"  # a word, or one single other character
_BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": False,
}
_WORDS = {"type": "Split", "pattern": {"Regex": SPLIT}, "behavior": "Isolated", "invert": False}
# What changes the ids of a text in ways we do not follow, unless it has one of these values.
_MODEL = {
    "type": ("BPE",),
    "dropout": (None, 0.0),
    "unk_token": (None,),
    "continuing_subword_prefix": (None, ""),
    "end_of_word_suffix": (None, ""),
    "byte_fallback": (False,),
    "ignore_merges": (False,),
}


def byte_alphabet() -> list[str]:
    """Return 256 characters: entry b is how the file shows byte b.

    The 188 printable Latin-1 bytes show as themselves, the other 68 as chr(256), chr(257), …
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = iter(range(256, 512))
    return [chr(b) if b in printable else chr(next(hidden)) for b in range(256)]


def write_bpe(path: str | Path, vocab: list[bytes], merges: list[tuple[bytes, bytes]]) -> None:
    """Write `vocab` (token of each id) and `merges` (best first) so that readers never see half.

    The folder is made where it is missing; the file is written aside, then moved into place.
    """
    path, alphabet = Path(path), byte_alphabet()
    show = {token: "".join(alphabet[b] for b in token) for token in vocab}
    model = {field: allowed[0] for field, allowed in _MODEL.items()} | {
        "fuse_unk": False,
        "vocab": {show[token]: i for i, token in enumerate(vocab)},
        "merges": [f"{show[left]} {show[right]}" for left, right in merges],
    }
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,  # ftfy cannot be written in this file: call normalise() first
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [_WORDS, _BYTE_LEVEL]},
        "post_processor": None,
        "decoder": _BYTE_LEVEL,
        "model": model,
    }
    write_text(path, json.dumps(content, ensure_ascii=False, indent=1))


def read_bpe(path: str | Path) -> tuple[list[bytes], list[tuple[bytes, bytes]]]:
    """Return (vocab, merges) of a file written by `write_bpe` or by the library itself.

    Read: a byte-level BPE whose words are runs of a-z and single other characters, its ids in any
    order. Refused: whatever makes the library encode normalised text differently from us, such as
    other words, special tokens, a normalizer other than Lowercase, dropout, or another model.
    Raises ValueError, naming the file and what is wrong, for a refused or a damaged file.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # not UTF-8, or not JSON
        raise ValueError(f"{path} is not a tokenizer file: {error}") from None
    problem = _foreign(content)
    if problem:
        raise ValueError(f"{path} is not a tokenizer that minidalle can follow: {problem}")
    try:
        vocab, merges = _read_model(content["model"])
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    for left, right in merges if _steps(content) == [_BYTE_LEVEL, _WORDS] else ():
        # Split after the bytes, a character such as 'é' is apart: the library never merges it.
        if not re.fullmatch(rb"[a-z]+", left + right):
            raise ValueError(f"{path}: its words never let {left!r} and {right!r} merge")
    return vocab, merges


def _foreign(content: object) -> str:
    """Say why the library would encode differently with this file, or return ''."""
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        return "it has no 'model'"
    for field, allowed in _MODEL.items():
        value = content["model"].get(field, allowed[0])
        if value not in allowed:
            return f"model.{field} is {value!r}, not {allowed[0]!r}"
    for field in ("truncation", "padding", "added_tokens"):
        if content.get(field):
            return f"it uses {field}"
    for field, allowed in (("normalizer", "Lowercase"), ("post_processor", "ByteLevel")):
        part = content.get(field)
        if part is not None and not (isinstance(part, dict) and part.get("type") == allowed):
            return f"its {field} is {str(part)[:80]}, not null or {allowed}"
    if _steps(content) not in ([_WORDS, _BYTE_LEVEL], [_BYTE_LEVEL, _WORDS]):
        return f"its pre_tokenizer is not Sequence(Split({SPLIT!r}, isolated), ByteLevel)"
    return ""


def _steps(content: dict) -> object:
    pre_tokenizer = content.get("pre_tokenizer")
    return pre_tokenizer.get("pretokenizers") if isinstance(pre_tokenizer, dict) else None


def _read_model(model: dict) -> tuple[list[bytes], list[tuple[bytes, bytes]]]:
    """Raises ValueError unless ids are 0, 1, … and merges are pairs of byte strings."""
    shown, merges = model.get("vocab"), model.get("merges")
    if not isinstance(shown, dict) or not isinstance(merges, list):
        raise ValueError("'vocab' must be an object and 'merges' a list")
    if any(type(i) is not int for i in shown.values()):
        raise ValueError("an id is not a whole number")
    tokens = sorted(shown, key=shown.__getitem__)
    if [shown[token] for token in tokens] != list(range(len(tokens))):
        raise ValueError(f"the ids of {len(tokens)} tokens are not 0 to {len(tokens) - 1}")
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
    for pair in pairs:
        if not isinstance(pair, list) or [type(part) for part in pair] != [str, str]:
            raise ValueError(f"merge {pair!r} is not a pair of tokens")
    byte_of = {character: b for b, character in enumerate(byte_alphabet())}
    return [_hide(t, byte_of) for t in tokens], [
        (_hide(left, byte_of), _hide(right, byte_of)) for left, right in pairs
    ]


def _hide(token: str, byte_of: dict[str, int]) -> bytes:
    try:
        return bytes(byte_of[character] for character in token)
    except KeyError as error:
        raise ValueError(f"token {token!r} has {error}, which stands for no byte") from None
