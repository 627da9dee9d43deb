"""`make settings`: every setting with type, default, bounds and meaning, read from the schema's source."""

import dataclasses
import inspect
import itertools
import re
import sys
from collections.abc import Iterator
from functools import partial
from types import NoneType, UnionType
from typing import Any, get_args, get_origin

from omegaconf import MISSING

from configs.schema.config import Config
from configs.schema.rules import in_words
from pipeline.application import CONFIGS, hydra_application
from pipeline.core.console import console, quiet
from pipeline.core.errors import UserError

NAME, NUMBER = "<name>", "<number>"  # in a key: the name of an item, and its position in a list
TASKS_KEY = "evaluation.tasks"


@dataclasses.dataclass(frozen=True)
class Setting:
    """One setting of the schema."""

    key: str
    part: str  # what the settings next to it are about
    type: str
    default: Any
    bounds: str
    meaning: str


def settings_of(part: Any, prefix: str = "") -> Iterator[Setting]:
    """The settings of a dataclass of the config, then those of the dataclasses below it."""
    about, below = str(inspect.getdoc(part)), []
    meanings = {name: text for kind in reversed(part.__mro__[:-1]) for name, text in comments(kind).items()}
    for field in dataclasses.fields(part):
        key, kinds = prefix + field.name, (field.type, *get_args(field.type))
        inner = next((kind for kind in kinds if dataclasses.is_dataclass(kind)), None)
        if inner is None:
            rule, factory = field.metadata.get("rule", {}), field.default_factory
            bounds = f"keys {in_words({'choices': rule['keys']})}" if "keys" in rule else in_words(rule)
            default = field.default if factory is dataclasses.MISSING else factory()
            yield Setting(key, about, type_in_words(field.type), default, bounds, meanings[field.name])
        else:
            item = "" if inner is field.type else f".{NUMBER if get_origin(field.type) is list else NAME}"
            below.append((inner, f"{key}{item}."))
    for inner, place in below:
        yield from settings_of(inner, place)


def comments(part: Any) -> dict[str, str]:
    """The comment above a field joined with the one at its end, by field."""
    found, lines = dict[str, str](), list[str]()
    for line in inspect.getsource(part).splitlines():
        code, _, comment = line.partition("# ")
        lines += [comment] if comment else []
        if field := re.match(r"    (\w+): ", code):
            found[field[1]] = " ".join(lines)
        lines = [] if code.strip() else lines
    return found


def type_in_words(kind: Any) -> str:
    """A type in words, such as `list of str` or `int or null`."""
    inner = [type_in_words(item) for item in get_args(kind)]
    if isinstance(kind, UnionType):
        return " or ".join(inner)
    if get_origin(kind) is list:
        return f"list of {inner[0]}"
    if get_origin(kind) is dict:
        return f"{inner[1]} by name"
    return {NoneType: "null", Any: "anything"}.get(kind) or kind.__name__


def named(key: str, words: str) -> str | None:
    """The key with its items' names taken from `words`, if it then begins with them; else None."""
    given = words.split(".")
    parts = key.split(".")
    filled = [word if part in (NAME, NUMBER) else part for part, word in zip(parts, given, strict=False)]
    whole = ".".join(filled + parts[len(given) :])
    return whole if whole.startswith(words) else None


def value_at(values: Any, key: str) -> Any:
    """The composed config's value at a key; MISSING if there is none, as for a key with a placeholder."""
    for part in key.split("."):
        values = values.get(part, MISSING) if isinstance(values, dict) else MISSING
    return values


def in_yaml(value: Any) -> str:
    """A value as it is written in YAML."""
    if isinstance(value, list):
        return f"[{', '.join(map(in_yaml, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {in_yaml(item)}' for key, item in value.items())}}}"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return "required" if value == MISSING else str(value) or '""'


def lines_of(each: Setting, values: dict[str, Any]) -> Iterator[str]:
    """The lines about one setting: type, bounds, default, value in this config, and meaning."""
    value = value_at(values, each.key)
    here = "" if value in (MISSING, each.default) else f", in profile {values['profile']} {in_yaml(value)}"
    bounds = f", {each.bounds}" if each.bounds else ""
    yield f"  {each.key}: {each.type}{bounds}; default {in_yaml(each.default)}{here}"
    yield f"      {each.meaning}"


def task_lines(config: Config) -> Iterator[str]:
    """The tasks of every available suite."""
    from evaluation.evaluate import task_names  # imports mteb, which takes seconds

    with quiet():
        for suite, names in task_names(config).items():
            yield f"  {suite}: {', '.join(names)}"


def show(words: str, config: Config) -> None:
    """Print the settings whose keys begin with the words, or else contain them; raises UserError if none does."""
    settings = list(settings_of(Config))
    begin = [dataclasses.replace(each, key=key) for each in settings if (key := named(each.key, words)) is not None]
    found = begin or [each for each in settings if words in each.key]
    if not found:
        raise UserError("no such setting", where=f"KEY={words}", remedy="make settings lists all of them")
    lines, shown, values = [], dict[str, str](), dataclasses.asdict(config)
    for (about, prefix), some in itertools.groupby(found, lambda each: (each.part, each.key.rpartition(".")[0])):
        if words or shown.setdefault(about, prefix) == prefix:
            lines += [f"\n{about}", *(line for each in some for line in lines_of(each, values))]
        else:
            lines.append(f"\n  {prefix}.*: same as {shown[about]}.*")
    if not words:
        lines.append("\nGroups: data=capped selects configs/data/capped.yaml.")
        for folder in sorted({path.parent for path in CONFIGS.glob("**/*.yaml")} - {CONFIGS}):
            files = ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
            lines.append(f"  {folder.relative_to(CONFIGS)}: {files}")
        lines += [f"\nNames of tasks: make settings KEY={TASKS_KEY}"]
    elif any(each.key == TASKS_KEY for each in found):
        lines += ["\nTasks by suite", *task_lines(config)]
    console.print("\n".join(lines), soft_wrap=True)


def main() -> None:
    """`python -m pipeline.settings [beginning of a key] [overrides]`."""
    words = [word for word in sys.argv[1:] if re.fullmatch(r"[\w.<>][\w.<>-]*", word)]
    sys.argv = [word for word in sys.argv if word not in words]
    hydra_application(partial(show, " ".join(words)))()


if __name__ == "__main__":
    main()
