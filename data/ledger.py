"""The account of every row: the card's count, the built pairs, the dropped rows and why."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from configs.schema.data import SourceConfig
from pipeline.core.console import cell, markdown_table

CARD_PAIRS, CARD_NEGATIVES = 2_240_961, 792_644
SAMPLE_CHARACTERS = 200  # of a sample
COUNTS = ("raw", "card", "built", "kept", "train", "dev", "negatives")
NOT_ON_CARD = "not on the card"
HELD_OUT = "held_out"  # the side of a set that is never trained on
# The one drop reason that counts negatives instead of rows; it includes those found in benchmarks.
WRONG_NEGATIVES = "negatives, empty or equal to the positive"


@dataclass
class SetCounts:
    """One set's counts in the ledger."""

    raw: int = 0
    built: int = 0
    scored: int = 0  # additional rows with a score below 1
    kept: int = 0
    train: int = 0
    dev: int = 0
    dev_candidates: int = 0  # held back or official rows, also those that share a training text
    negatives: int = 0
    sampled_out: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    reported: Counter[str] = field(default_factory=Counter)  # evaluation texts found, by task
    cleaned: dict[str, int] = field(default_factory=dict)  # texts that each rule of cleaning changed
    # Changed texts: rule, before and after, shortened.
    examples: list[tuple[str, str, str]] = field(default_factory=list)
    bad_rows: Counter[str] = field(default_factory=Counter)
    mined: dict[str, Any] = field(default_factory=dict)  # by the miner: negatives, share of false negatives dropped


def entry(name: str, source: SourceConfig, counts: dict[str, Any]) -> dict[str, Any]:
    """One set's line: its counts, and its settings in the config."""
    return {
        "name": name,
        "title": source.title,
        "side": source.side,
        "status": status(source, counts["built"]),
        "source": source.hub or source.path or source.reader,
        "revision": counts["revision"],
        "licence": source.licence,
        "access": source.access,
        "columns_verified": source.columns_verified,
        "card": source.card.pairs,
        "card_negatives": source.card.negatives,
        "expected": expected(source),
        "difference": source.card.difference,
        "note": source.note,
        "weight": source.weight,
        "repeat": source.repeat,
        **counts,
    }


def skipped(name: str, source: SourceConfig, reason: str) -> dict[str, Any]:
    """The line of an optional set that could not be read."""
    return entry(name, source, vars(SetCounts()) | {"revision": ""}) | {"status": f"skipped: {reason}"}


def expected(source: SourceConfig) -> int | None:
    """Pairs that the construction gives on the real files, where known."""
    return source.card.pairs if source.card.expected is None else source.card.expected


def expected_rows(source: SourceConfig) -> int:
    """Pairs that a run will use of them, where known; else 0."""
    return min(filter(None, (expected(source), source.max_rows)), default=0)


def status(source: SourceConfig, built: int) -> str:
    """equal, differs, or "not on the card"; a rounded figure of the card is met within half a rounding step."""
    if source.card.pairs is None:
        return NOT_ON_CARD
    return "equal" if abs(built - source.card.pairs) <= source.card.rounded_to // 2 else "differs"


def totals(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Sums over the training sets, and the card's totals."""
    training = [line for line in lines if line["side"] != HELD_OUT]
    sums: dict[str, Any] = {count: sum(line[count] or 0 for line in training) for count in COUNTS}
    counted = [line for line in training if line["card_negatives"] is not None]
    return sums | {
        "card_total_pairs": CARD_PAIRS,
        "card_total_negatives": CARD_NEGATIVES,
        "negatives_the_card_counts": sum(line["negatives"] for line in counted),
        "negatives_it_leaves_out": sums["negatives"] - sum(line["negatives"] for line in counted),
    }


def table(lines: list[dict[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of the sets; the published card's figures only where one of the sets is on it."""
    on_card = _has_card_sets(lines)
    shown = [count for count in COUNTS if count != "card" or on_card]
    rows = []
    for line in lines:
        status = line["status"] if on_card or line["status"] != NOT_ON_CARD else None
        counts = line | ({"train": None, "dev": None} if line["side"] == HELD_OUT else {})  # written, not trained on
        rows.append([line["title"], line["side"], *(counts[count] for count in shown), status])
    return ["set", "side", *shown, "status"], rows


def _has_card_sets(lines: list[dict[str, Any]]) -> bool:
    return any(line["card"] is not None for line in lines)


def markdown(lines: list[dict[str, Any]], sums: dict[str, Any], evaluations: dict[str, Any]) -> str:
    """The ledger for readers: one table, then the details of each set."""
    columns, rows = table(lines)
    rows.append(["**all training sets**", "", *(sums[count] for count in columns[2:-1]), ""])
    cells = [[cell(value) for value in row] for row in rows]
    parts = ["# Data ledger\n", markdown_table(columns, cells, range(2, len(columns) - 1)), ""]
    if _has_card_sets(lines):
        parts.append(
            f"The card's total is {CARD_PAIRS:,} positive and {CARD_NEGATIVES:,} negative pairs; built here: "
            f"{sums['built']:,} pairs. Negatives of the sets whose negatives the card counts: "
            f"{sums['negatives_the_card_counts']:,}; of the others: {sums['negatives_it_leaves_out']:,}.\n"
        )
    parts += [_paragraph(line) for line in lines]
    parts.append(_evaluations(lines, evaluations))
    return "\n".join(parts)


def _paragraph(line: dict[str, Any]) -> str:
    revision = line["revision"] or "none"
    facts = [f"{line['source']}, revision {revision}; licence: {line['licence']}; access: {line['access']}."]
    if line["card"] is not None and line["built"] != line["card"]:
        reason = line["difference"] or "the available files are not the full set"
        facts.append(f"Built {line['built']:,} against the card's {line['card']:,}: {reason}.")
    if line["scored"]:
        facts.append(f"In addition {line['scored']:,} rows with a score below 1, used by AnglE only.")
    if line["dev"] < line["dev_candidates"]:
        held_back = f"{line['dev_candidates']:,} rows held back"
        facts.append(f"Of {held_back}, {line['dev']:,} are dev rows; none shares a text with training.")
    accounts = {"Dropped": "dropped", "Bad rows left out": "bad_rows", "Found in evaluations": "reported"}
    for what, key in accounts.items():
        if line[key]:
            reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(line[key].items()))
            facts.append(f"{what}: {reasons}.")
    if line["cleaned"]:
        rules = ", ".join(f"{rule} {count:,}" for rule, count in line["cleaned"].items())
        shown = "; ".join(f"{_code(before)} → {_code(after)} ({rule})" for rule, before, after in line["examples"])
        facts.append(f"Texts changed by cleaning: {rules}. Examples: {shown}.")
    if line.get("mined"):
        mined = line["mined"]
        facts.append(
            f"Mined {mined['negatives']:,} negatives with {mined['model']} ({mined['revision']}); "
            f"{mined['false_negatives']:.1%} of the candidates were dropped as false negatives, "
            f"{mined['pairs_without']:,} pairs have none."
        )
        for row in mined["samples"]:
            facts.append(f"- {_short(row['anchor'])}")
            facts.append(f"    - positive: {_short(row['positive'])}")
            facts.append(f"    - mined: {_short(row['negative'])}")
    if line["note"]:
        facts.append(line["note"])
    return f"## {line['title']}\n\n" + "\n".join(facts) + "\n"


def _code(text: str) -> str:
    """A text shown verbatim, whatever Markdown or HTML it contains."""
    return f"`` {text} ``" if "``" not in text else repr(text)


def _short(text: str) -> str:
    """A text on one line of the ledger, shortened."""
    line = " ".join(text.split())
    return line if len(line) <= SAMPLE_CHARACTERS else f"{line[: SAMPLE_CHARACTERS - 1]}…"


def _evaluations(lines: list[dict[str, Any]], evaluations: dict[str, Any]) -> str:
    """The evaluations the pairs were checked against, and how many texts of each were found in which set."""
    found: dict[str, list[str]] = {}
    for line in lines:
        for task, count in line["reported"].items():
            name = task.removeprefix("near ").removeprefix("evaluation: ")
            found.setdefault(name, []).append(f"{line['title']} {count:,}")
    parts = ["## Evaluations\n"]
    for task, texts in evaluations["checked"].items():
        parts.append(f"- {task}: {texts:,} texts; found in training: {', '.join(found.get(task, [])) or 'none'}")
    parts += [f"- {task}: **not checked**: {reason}" for task, reason in evaluations["not_checked"].items()]
    return "\n".join(parts) + "\n" if len(parts) > 1 else "## Evaluations\n\nPairs were checked against no benchmark.\n"
