"""What the text tokenizers of the published priors share: batches, and the way back to text.

Source: this project; the tokenizers themselves stand in the files of their families.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from minidalle.tokenizer import PAD


class Words:
    """One half of a tokenizer; the other has `encode`.

    symbols: what an id stands for. mark: what stands in symbols for the space between words.
    """

    encode: Callable[[str], list[int]]
    symbols: dict[int, str]
    mark: str

    def encode_batch(self, texts: Sequence[str], length: int) -> Tensor:
        """Return int64 (B, length): the ids of each caption, cut, then PAD."""
        rows = [self.encode(text)[:length] for text in texts]
        return torch.tensor([row + [PAD] * (length - len(row)) for row in rows])

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids; PAD, and ids that stand for no symbol, are passed over."""
        shown = "".join(self.symbols.get(int(i), "") for i in ids)
        return shown.replace(self.mark, " ").strip()
