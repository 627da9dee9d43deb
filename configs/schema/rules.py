"""What a value of the config may be."""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def name_problem(name: str) -> str | None:
    """What is wrong with a name that becomes a file or folder: it must stay where it is put."""
    if name in ("", "..") or Path(name).name != name or "\0" in name:
        return f"{name!r} must be a plain name, as of a file or folder"
    return None


def problems(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """What is wrong with the values of a config and of its parts, as (key, what)."""
    if hasattr(value, "problems"):
        yield from ((f"{key}.{name}".lstrip("."), problem) for name, problem in value.problems())
    if isinstance(value, float) and not math.isfinite(value):
        yield key, f"must be a finite number, not {value}"
    elif isinstance(value, list):
        yield from (found for position, item in enumerate(value) for found in problems(item, f"{key}.{position}"))
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from problems(getattr(value, field.name), f"{key}.{field.name}".lstrip("."))
    elif isinstance(value, dict):
        for name, item in value.items():
            if dataclasses.is_dataclass(item) and (problem := name_problem(name)):  # sets, suites, corpora
                yield key, problem
            yield from problems(item, f"{key}.{name}")
