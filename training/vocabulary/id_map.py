"""`id_map.parquet`: which id became which, for users of sparse dimensions."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from training.vocabulary.counting import Counts
from training.vocabulary.tokenizer_file import TokenizerFile


def write_id_map(path: Path, tokenizer: TokenizerFile, kept: Counts, occurrences: Mapping[str, Counts]) -> None:
    """One row an id that stays: old_id, new_id, piece, score, count_<language>; special tokens included."""
    import pyarrow
    import pyarrow.parquet

    scores = np.zeros(tokenizer.size)  # added tokens behind the pieces have no score of their own
    scores[: len(tokenizer.pieces)] = tokenizer.scores
    columns = {
        "old_id": kept.astype(np.int32),
        "new_id": np.arange(len(kept), dtype=np.int32),
        "piece": [tokenizer.piece(int(old)) for old in kept],
        "score": scores[kept],
        **{f"count_{language}": count[kept] for language, count in occurrences.items()},
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
