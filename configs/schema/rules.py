"""Which values a config may have: a rule next to each default, and the walk that finds violations."""

import copy
import dataclasses
import math
import operator
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import NoneType
from typing import Any, TypedDict, TypeVar, Unpack, get_args

T = TypeVar("T")
BOUNDS = {
    "above": (operator.gt, "above"),
    "least": (operator.ge, "at least"),
    "below": (operator.lt, "below"),
    "most": (operator.le, "at most"),
}
LONGEST_NAME = 255  # bytes of a folder's name


class Rule(TypedDict, total=False):
    """The allowed values, in a list or dictionary of each item; null is always allowed if the type has it."""

    above: float
    least: float
    below: float
    most: float
    choices: Collection[str]  # with bounds: words allowed instead of a number
    keys: Collection[str]  # of a dictionary
    name: bool  # names a file or folder, as do the keys of a dictionary with this rule
    distinct: bool  # no duplicates in a list: they would be tested, trained or weighted twice


def setting(default: T, *, result: bool = True, unit: bool = True, later: bool = False, **rule: Unpack[Rule]) -> T:
    """A config field with its rule; a list or dictionary as default is copied for every instance.

    `result=False` keeps the field out of its stage's fingerprint, `unit=False` out of that of its source's rows.
    `later=True` does the former while the field has its default: artefacts older than the option stay finished.
    """
    metadata = {"rule": rule, "result": result, "unit": unit} | ({"unless": default} if later else {})
    if isinstance(default, list | dict):
        return dataclasses.field(default_factory=lambda: copy.deepcopy(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def problems(value: Any, key: str = "", rule: Mapping[str, Any] | None = None) -> Iterator[tuple[str, str]]:
    """The invalid values of a config and its parts, as (key, problem).

    A part's method `problems` checks combinations of values; it is called if every single value is valid.
    """
    rule = rule or {}
    if dataclasses.is_dataclass(value):
        prefix = f"{key}." if key else ""
        found: list[tuple[str, str]] = []
        for field in dataclasses.fields(value):
            own_rule = field.metadata.get("rule", {}) | {"null": NoneType in get_args(field.type)}
            found += problems(getattr(value, field.name), prefix + field.name, own_rule)
        if not found and hasattr(value, "problems"):
            found += [(prefix + name, problem) for name, problem in value.problems()]
        yield from found
    elif isinstance(value, list):
        if rule.get("distinct") and len(set(value)) < len(value):
            yield key, "must not contain duplicates"
        for position, item in enumerate(value):
            yield from problems(item, f"{key}.{position}", rule)
    elif isinstance(value, dict):
        for name, item in value.items():
            if dataclasses.is_dataclass(item) or rule.get("name"):  # sets, suites and corpora become files by name
                yield from problems(name, key, {"name": True})
            if "keys" in rule:
                yield from problems(name, key, {"choices": rule["keys"]})
            yield from problems(item, f"{key}.{name}", rule)
    elif value is not None and (problem := _problem_of_value(value, rule)):
        yield key, problem


def _problem_of_value(value: Any, rule: Mapping[str, Any]) -> str | None:
    if isinstance(value, float) and not math.isfinite(value):
        return f"must be a finite number, not {value}"
    or_null = ", or null" if rule.get("null") else ""
    if rule.get("name") and not _is_name(value):
        return f"{value!r} must be {in_words(rule)}"
    bounds = {name: rule[name] for name in BOUNDS if name in rule}
    if "choices" in rule and (isinstance(value, str) or not bounds):
        return None if value in rule["choices"] else f"must be {in_words(rule)}{or_null}, not {value}"
    if all(BOUNDS[name][0](value, bound) for name, bound in bounds.items()):
        return None
    return f"must be {in_words(bounds)}{or_null}"


def _is_name(value: str) -> bool:
    plain = value not in ("", "..") and Path(value).name == value and "\0" not in value
    return plain and len(os.fsencode(value)) <= LONGEST_NAME


def in_words(rule: Mapping[str, Any]) -> str:
    """A rule in words, such as `at least 0 and below 1` or `auto or at least 1`; empty if there is none."""
    if rule.get("name"):
        return f"a plain name for a file or folder, of up to {LONGEST_NAME} bytes"
    bounds = " and ".join(f"{words} {rule[name]}" for name, (_, words) in BOUNDS.items() if name in rule)
    if "choices" not in rule:
        return bounds
    names = ", ".join(rule["choices"])
    return f"{names} or {bounds}" if bounds else f"one of {names}"
