"""Rows of one group brought together without holding the set in memory: spilled to disk by the group's key."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import polars as pl

from data.pairs.hashing import text_hashes

PART_BYTES = 48 * 2**20  # of the rows that are grouped at once


def grouped(frames: Iterable[pl.DataFrame], scratch: Path, source_bytes: int) -> Iterator[pl.DataFrame]:
    """Frames in which every group of `frames` (column `group`) is complete.

    How many there are follows from the size of the source alone, so the order of the rows does too.
    """
    parts = max(1, -(-source_bytes // PART_BYTES))
    if parts == 1:
        together = list(frames)
        if together:
            yield pl.concat(together)
        return
    yield from _spilled(frames, scratch, parts)


def _spilled(frames: Iterable[pl.DataFrame], scratch: Path, parts: int) -> Iterator[pl.DataFrame]:
    scratch.mkdir(parents=True, exist_ok=True)
    counts = [0] * parts
    for frame in frames:
        numbers = pl.Series("part", text_hashes(frame["group"]) % parts)
        for (part,), rows in frame.with_columns(numbers).partition_by("part", as_dict=True, include_key=False).items():
            rows.write_ipc(scratch / f"{part}-{counts[part]}.arrow")
            counts[part] += 1
    for part, count in enumerate(counts):
        pieces = [scratch / f"{part}-{number}.arrow" for number in range(count)]
        if pieces:
            yield pl.concat([pl.read_ipc(piece.open("rb")) for piece in pieces])
        for piece in pieces:
            piece.unlink()
