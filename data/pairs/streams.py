"""Streams of frames: processed in threads in order, and collected by group through the disk."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import polars as pl

from data.pairs.hashing import text_hashes

PART_BYTES = 48 * 2**20  # of rows grouped at once
Item = TypeVar("Item")
Result = TypeVar("Result")


def ordered_map(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """`map` with up to `workers` calls at once; reads at most as many items ahead, so memory stays bounded.

    Threads are enough: polars and Arrow release the GIL while they work.
    """
    with ThreadPoolExecutor(workers, thread_name_prefix="data") as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def grouped(frames: Iterable[pl.DataFrame], scratch: Path, source_bytes: int) -> Iterator[pl.DataFrame]:
    """Frames in which every group of `frames` (column `group`) is complete.

    Their number, and so the order of the rows, depends only on the size of the source.
    """
    parts = max(1, -(-source_bytes // PART_BYTES))
    if parts == 1:
        if together := list(frames):
            yield pl.concat(together)
        return
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
            yield pl.concat([pl.read_ipc(piece.read_bytes()) for piece in pieces])
        for piece in pieces:
            piece.unlink()
