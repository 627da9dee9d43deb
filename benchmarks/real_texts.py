"""The real Russian texts for measuring counting: Wiktionary, the training files and encodechka's, each text once."""

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.core.errors import UserError

SHARED = Path(os.environ.get("USER_SHARED_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


def real_texts() -> list[str]:
    """Distinct texts: cleaned Wiktionary from its package, then the folders `training` and `encodechka`.

    Raises:
        UserError: the folder of real data is missing.
    """
    if not SHARED.is_dir():
        remedy = "set the environment variable USER_SHARED_DATA to its folder"
        raise UserError("no real data for this benchmark", where=str(SHARED), remedy=remedy)
    return list(dict.fromkeys(text for text in (*wiktionary(), *shared_texts()) if text.strip()))


def wiktionary() -> Iterator[str]:
    """Terms, definitions and usage examples."""
    from data.sources.wiktionary import senses

    for sense in senses():
        yield sense.term
        yield sense.definition
        yield from sense.examples


def shared_texts() -> Iterator[str]:
    """All texts in the jsonl, json and csv files of real data."""
    for path in sorted([*SHARED.glob("training/*.jsonl"), *SHARED.glob("encodechka/*")]):
        if path.suffix == ".csv":
            with path.open(encoding="utf-8", newline="") as file:
                yield from (cell for row in csv.reader(file) for cell in row if not _is_number(cell))
        elif path.suffix in (".json", ".jsonl"):
            content = path.read_text(encoding="utf-8")
            values = [json.loads(content)] if path.suffix == ".json" else map(json.loads, content.splitlines())
            yield from _strings(list(values))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)


def _is_number(cell: str) -> bool:
    return cell.replace(".", "", 1).replace("-", "", 1).isdigit()
