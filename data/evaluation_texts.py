"""The texts of evaluations: held-out sets and bundled samples, never trained on, and benchmarks."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq

from data.config import DataConfig
from data.decontamination import TextIndex


def forbidden_texts(held_out: Path, names: list[str], samples: Path) -> TextIndex:
    """Anchors and positives of the held-out sets, and every text of the bundled evaluation samples."""
    named: dict[str, pl.Series] = {}
    for name in names:
        table = pq.read_table(held_out / f"{name}.parquet", columns=["anchor", "positive"])
        columns = [pl.Series(pl.from_arrow(table[column])) for column in ("anchor", "positive")]
        named[f"held out: {name}"] = pl.concat(columns)
    for file in sorted(samples.glob("*.jsonl")):
        lines = file.read_text(encoding="utf-8").splitlines()
        texts = [text for line in lines if line.strip() for text in _texts(json.loads(line))]
        named[f"evaluation sample: {file.stem}"] = pl.Series(texts, dtype=pl.String)
    return TextIndex.of(named)


def _texts(content: Any) -> list[str]:
    """All texts of two words or more inside JSON content; single words are labels or too common to forbid."""
    if isinstance(content, str):
        return [content] if " " in content.strip() else []
    if isinstance(content, dict):
        return [text for value in content.values() for text in _texts(value)]
    if isinstance(content, list):
        return [text for value in content for text in _texts(value)]
    return []


def benchmark_texts(data: DataConfig) -> TextIndex:
    """Texts of the suites under `decontamination.suites`."""
    return TextIndex.of({})
