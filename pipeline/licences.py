"""`make licences`: under which terms the installed packages stand, as they say themselves: runs/licences.csv."""

import csv
import importlib.metadata
import re
from collections import defaultdict
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from configs.schema.config import Config
from pipeline.application import hydra_application
from pipeline.core.artefact import replacing
from pipeline.core.console import console, show_table
from pipeline.core.errors import UserError

LOCK = Path(__file__).resolve().parent.parent / "requirements.lock"
NOT_STATED = "not stated"
LONGEST = 120  # characters of a licence's name; some packages put the whole text in its place


@dataclass(frozen=True)
class Licence:
    """What an installed package says of its licence, and where."""

    name: str
    version: str
    locked: str  # yes: it stands in requirements.lock; no: another package or the environment brought it
    licence: str
    stated_in: str  # a field of the package's metadata, or a file of its; empty where nothing is stated


def report(config: Config) -> None:
    """Write <runs>/licences.csv and show it by licence; raises UserError where a locked package is not installed."""
    found = licences(LOCK.read_text(encoding="utf-8"))
    target = Path(config.runs) / "licences.csv"
    with replacing(target) as path, path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Licence)])
        writer.writeheader()
        writer.writerows(map(asdict, found))
    groups: dict[str, list[str]] = defaultdict(list)
    for package in found:
        groups[package.licence].append(package.name)
    rows = [[licence, len(names), ", ".join(names)] for licence, names in sorted(groups.items())]
    show_table(f"licences of {len(found)} packages: {target}", ["licence", "count", "packages"], rows)
    if unknown := groups.get(NOT_STATED):
        console.print(f"look these up yourself: {', '.join(unknown)}")


def licences(lock: str) -> list[Licence]:
    """Every installed package, by name; `lock` is the text of requirements.lock. Raises UserError."""
    installed = {_canonical(each.name): each for each in importlib.metadata.distributions() if each.name}
    locked = {_canonical(line.partition("==")[0]) for line in lock.splitlines() if line and not line.startswith("#")}
    if missing := sorted(locked - installed.keys()):
        what = f"{', '.join(missing)} not installed"
        raise UserError(what, where=LOCK.name, remedy="run make setup")
    return [
        Licence(package.name, package.version, "yes" if name in locked else "no", *_stated(package))
        for name, package in sorted(installed.items())
    ]


def _stated(package: importlib.metadata.Distribution) -> tuple[str, str]:
    """(licence, where that is stated): the most exact statement that there is."""
    all_of = package.metadata.get_all
    names = [each.rpartition(" :: ")[2] for each in all_of("Classifier") or [] if each.startswith("License ::")]
    statements = {
        "License-Expression": next(iter(all_of("License-Expression") or []), ""),
        "License": _short(next(iter(all_of("License") or []), "")),
        "Classifier": " AND ".join(name for name in names if name != "OSI Approved"),
        **{file: _short(_text(package, file)) for file in all_of("License-File") or []},
    }
    return next(((text, place) for place, text in statements.items() if text), (NOT_STATED, ""))


def _short(text: str) -> str:
    """A licence's name, on a line of its own or as the title of its text; empty where there is none."""
    lines = [line.strip() for line in text.strip().splitlines() if re.search(r"\w", line)]
    title = len(lines) == 1 or re.search(r"licen[cs]e", lines[0], re.I) if lines else False
    known = title and lines[0].upper() != "UNKNOWN" and len(lines[0]) <= LONGEST
    return " ".join(lines[0].split()) if known else ""


def _text(package: importlib.metadata.Distribution, file: str) -> str:
    return package.read_text(f"licenses/{file}") or package.read_text(file) or ""


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


main = hydra_application(report)

if __name__ == "__main__":
    main()
