"""Texts segmented by the original and by the shrunk tokenizer, compared one by one."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BATCH = 4096
DROPPED = -1  # where an id has no successor
Ids = npt.NDArray[np.int64]


@dataclass
class Agreement:
    """How the two tokenizers agree on the texts of one corpus."""

    texts: int = 0  # texts compared
    covered: int = 0  # texts of which the original uses kept pieces only
    mismatches: int = 0  # covered texts with other ids than the original's, renumbered: the guarantee says 0
    pieces_before: int = 0
    pieces_after: int = 0
    unknown_characters_before: int = 0
    unknown_characters_after: int = 0
    examples: list[str] = field(default_factory=list)  # covered texts, for comparing hidden states

    @property
    def coverage(self) -> float:
        """Share of the texts that are covered."""
        return self.covered / max(self.texts, 1)


class Comparison:
    """Compares segmentations; `new_ids[old]` is an id's successor or `DROPPED`."""

    def __init__(self, before: "Tokenizer", after: "Tokenizer", new_ids: Ids, unknown_id: int) -> None:
        self._before, self._after = before, after
        self._new_ids, self._unknown_id = new_ids, unknown_id

    def agreement(self, texts: Iterable[str], examples: int = 0) -> Agreement:
        """Compare all texts and keep the first `examples` covered ones."""
        found = Agreement()
        batch: list[str] = []
        for text in texts:
            batch.append(text)
            if len(batch) == BATCH:
                self._compare(batch, found, examples)
                batch = []
        if batch:
            self._compare(batch, found, examples)
        return found

    def _compare(self, texts: list[str], found: Agreement, examples: int) -> None:
        before, after = _ids(self._before, texts), _ids(self._after, texts)
        found.texts += len(texts)
        found.pieces_before += sum(map(len, before))
        found.pieces_after += sum(map(len, after))
        for text, old, new in zip(texts, before, after, strict=True):
            expected = self._new_ids[old]
            covered = bool((expected != DROPPED).all())
            found.covered += covered
            found.mismatches += covered and not np.array_equal(expected, new)
            if covered and len(found.examples) < examples:
                found.examples.append(text)
        unknown_id = self._unknown_id
        doubtful = [text for text, new in zip(texts, after, strict=True) if unknown_id in new]
        found.unknown_characters_after += self._unknown_characters(self._after, doubtful)
        doubtful = [text for text, old in zip(texts, before, strict=True) if unknown_id in old]
        found.unknown_characters_before += self._unknown_characters(self._before, doubtful)

    def _unknown_characters(self, tokenizer: "Tokenizer", texts: list[str]) -> int:
        """Characters of the texts that became `<unk>` (one `<unk>` stands for a run of them)."""
        return sum(
            end - start
            for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)
            for token, (start, end) in zip(encoding.ids, encoding.offsets, strict=True)
            if token == self._unknown_id
        )


def _ids(tokenizer: "Tokenizer", texts: list[str]) -> list[Ids]:
    return [np.array(encoding.ids, dtype=np.int64) for encoding in tokenizer.encode_batch_fast(texts)]
