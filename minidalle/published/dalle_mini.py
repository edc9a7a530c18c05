"""Read DALL-E mini and mega from the files of min-dalle: two halves, a decoder of codes, a BPE.

Source: Dayma et al. 2021, github.com/borisdayma/dalle-mini; github.com/kuprel/min-dalle, whose
files at huggingface.co/kuprel/min-dalle these are (float16, without the gains that are fixed to 1).
"""

import json
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from minidalle.codebooks.vqgan import VQGAN
from minidalle.config import MiniConfig, VQGANConfig
from minidalle.priors.mini import END, START, Mini
from minidalle.published.weights import Parts, fill, naming, pick, read_merges, read_state
from minidalle.published.words import Words
from minidalle.tokenizer import Cache, apply_merges

MINI = MiniConfig()
MEGA = MiniConfig(text_vocab=50_272, spare_rows=32, n_layers=24, n_heads=32, glu_width=4096)
CODEBOOK = VQGANConfig(n_pools=4, vocab_size=16_384, signed=False)  # tuned on pixels in [0, 1]

# Our names and theirs, to be replaced in this order; the two halves are two files.
NAMES = {
    "text_embedding": "embed_tokens", "image_embedding": "embed_tokens",
    "text_positions": "embed_positions", "image_positions": "embed_positions",
    "text_norm": "layernorm_embedding", "image_norm": "layernorm_embedding",
    "encoder_norm": "final_ln", "decoder_norm": "final_ln", "image_head": "lm_head",
    "encoder_blocks": "layers", "decoder_blocks": "layers",
    "cross_attention.post_norm": "encoder_attn_layer_norm",
    "cross_attention.norm": "pre_encoder_attn_layer_norm",
    "cross_attention": "encoder_attn",
    ".attention.post_norm": ".self_attn_layer_norm",
    ".attention.norm": ".pre_self_attn_layer_norm",
    ".attention": ".self_attn",
    ".q.": ".q_proj.", ".out.": ".out_proj.",
    "mlp.norm": "glu.ln0", "mlp.inner_norm": "glu.ln1", "mlp.down": "glu.fc2",
}  # fmt: skip
JOINED = {".kv.": (".k_proj.", ".v_proj."), "mlp.up": ("glu.fc0", "glu.fc1")}  # one map of ours
# Norms in front of a linear map have no gain in the files: it is 1.
NO_GAIN = (
    "pre_self_attn_layer_norm.weight", "pre_encoder_attn_layer_norm.weight",
    "glu.ln0.weight", "glu.ln1.weight", "final_ln.weight",
)  # fmt: skip


class BARTTokenizer(Words):
    """Byte-pair encoding of lower-case words, as min-dalle does it; each begins with 'Ġ'.

    Accents are taken off and emoji are spelt out by their Unicode names; min-dalle drops the
    letters under accents. What is left beyond ASCII is dropped.
    """

    mark = "Ġ"

    def __init__(self, vocab: dict[str, int], merges: Sequence[tuple[str, str]]):
        """vocab: subword -> id; merges: pairs of subwords, best first."""
        if [vocab.get(mark) for mark in ("<s>", "</s>")] != [START, END] or "<unk>" not in vocab:
            raise ValueError(f"'<s>' must be {START}, '</s>' {END}, and there must be an '<unk>'")
        self.vocab, self.vocab_size = vocab, len(vocab)
        self.symbols = {i: subword for subword, i in vocab.items()}
        self._ranks = {pair: rank for rank, pair in reversed([*enumerate(merges)])}
        self._products = [left + right for left, right in merges]
        self._cache = Cache(self._encode_word)

    @classmethod
    def load(cls, vocab: Path, merges: Path) -> "BARTTokenizer":
        """Read the two files. Raises ValueError, naming one, where it is something else."""
        with naming(merges, "list of merges"):
            pairs = read_merges(merges)
        with naming(vocab, "BART vocabulary"):
            ids = json.loads(vocab.read_text(encoding="utf-8"))
            if not isinstance(ids, dict) or not all(type(i) is int for i in ids.values()):
                raise ValueError("it is no table of subwords and ids")
            return cls(ids, pairs)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a caption, without start- and end-of-text."""
        named = "".join(
            f" {unicodedata.name(c, '')} " if unicodedata.category(c) == "So" else c for c in text
        )
        plain = unicodedata.normalize("NFKD", named.lower()).encode("ascii", "ignore").decode()
        return [i for word in plain.split() for i in self._cache[word]]

    def _encode_word(self, word: str) -> list[int]:
        merged = apply_merges([*f"Ġ{word}"], self._ranks, self._products)
        return [self.vocab.get(subword, self.vocab["<unk>"]) for subword in merged]


def make(config: MiniConfig) -> Parts:
    """Make the models without weights; the codebook can only draw: no file holds its encoder."""
    codebook = VQGAN(CODEBOOK)
    del codebook.encoder, codebook.quant_conv
    return Parts(codebook=codebook, prior=Mini(config))


def load(
    folder: str | Path, dtype: torch.dtype, config: MiniConfig, start: int | None = None
) -> Parts:
    """Load the parts from a folder as min-dalle leaves it, or with the hub's names of the files.

    dtype: of the prior; the codebook is float32. start: the row that stands before the image. The
    sources disagree: it is 16384 by default, as in the training; min-dalle 0.4.11 uses 16383, which
    is a code; its earlier versions 16415 for mega, the last row.
    Raises ValueError, naming file and key, where something is missing, misshapen or too much.
    """
    size = "mega" if config.n_layers > MINI.n_layers else "mini"
    suffix = {"mini": "_mini", "mega": ""}[size]  # on the hub; min-dalle itself makes folders

    def path(name: str, end: str) -> Path:
        return pick(folder, (f"{name}{suffix}{end}", f"dalle_bart_{size}/{name}{end}"))

    with torch.device("meta"):
        parts = make(config)
    tokenizer = BARTTokenizer.load(path("vocab", ".json"), path("merges", ".txt"))
    state = {}
    for half in ("encoder", "decoder"):
        state |= _translate(parts.prior, half, path(half, ".pt"), dtype)
    parts.prior.load_state_dict(state, assign=True)
    parts.prior.eval().requires_grad_(False)
    if start is not None:
        parts.prior.start = start
    detokenizer = pick(folder, ("detoker.pt", "vqgan/detoker.pt"))
    state = read_state(detokenizer)
    renamed = {
        name.replace("embedding.weight", "quantize.embedding.weight"): x
        for name, x in state.items()
    }
    fill(parts.codebook, renamed, detokenizer)
    return parts._replace(tokenizer=tokenizer)


def _translate(prior: Mini, half: str, path: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the tensors of one file under our names. Errors as `fill`."""
    theirs, found = read_state(path), {}
    for name, slot in prior.state_dict().items():
        if name.startswith(("text_", "encoder_")) != (half == "encoder"):
            continue
        keys, pieces = _keys(name), []
        shape = (slot.shape[0] // len(keys), *slot.shape[1:])
        for key in keys:
            if key not in theirs and key.endswith(NO_GAIN):
                theirs[key] = torch.ones(shape)
            if key not in theirs:
                raise ValueError(f"{path} lacks {key}")
            if theirs[key].shape != shape:
                raise ValueError(f"{path}: {key} is {tuple(theirs[key].shape)}, must be {shape}")
            pieces.append(theirs.pop(key).to(dtype))
        found[name] = torch.cat(pieces) if len(pieces) > 1 else pieces[0]
    if theirs:
        raise ValueError(f"{path} holds {min(theirs)}, which is no part of this model")
    return found


def _keys(name: str) -> list[str]:
    """Return the keys of a parameter of ours in the files: two where we have joined two maps."""
    for ours, their in NAMES.items():
        name = name.replace(ours, their)
    for ours, pair in JOINED.items():
        if ours in name:
            return [name.replace(ours, their) for their in pair]
    return [name]
