"""Groups pairs that share texts into items: a task would otherwise count each pair as new evidence."""

from collections.abc import Sequence

import numpy as np

from data.sampling import linked
from pipeline.core.embedding import text_key


def items_of_pairs(first: Sequence[str], second: Sequence[str]) -> np.ndarray:
    """The column ITEM [pairs] of a task on pairs of texts: linked pairs share the digest of their smallest text."""
    groups = linked(np.array(first, dtype=object), np.array(second, dtype=object)).tolist()
    smallest: dict[int, str] = {}
    for group, *pair in zip(groups, first, second, strict=True):
        smallest[group] = min(smallest.get(group, pair[0]), *pair)
    names = {group: text_key(text) for group, text in smallest.items()}
    return np.array([names[group] for group in groups], dtype=object)
