"""The page's parts about what was run: summary, chain, dataset ledger, vocabulary certificate, environment."""

from collections.abc import Iterator
from typing import Any

from evaluation import report_format as show
from evaluation.card_metadata import base_id
from evaluation.claims import PUBLISHED_BASE
from evaluation.run_record import RunRecord, StageRecord

GROUPS = (("data",), ("init",), ("symmetric", "asymmetric", "joint"), ("merge",), ("evaluate",))
HEADLINES = (  # (suite, task, metric, words), the first that was measured is shown
    ("encodechka", "Mean S", "mean", "encodechka, mean of sentence tasks"),
    ("wiktionary", "term_to_definition", "recall_at_1", "R@1, term to definition"),
)
CERTIFIED = ("vocabulary", "parameters")


def base_name(run: RunRecord) -> str:
    """What people call the base: its Hub id, and the name of its config where that is something else."""
    name, hub = str((run.config.get("base") or {}).get("name") or "unknown base"), base_id(run)
    return name if hub is None else hub if (run.config.get("base") or {}).get("hub") else f"{hub} ({name})"


def lede(run: RunRecord) -> str:
    """One sentence: what was made of what."""
    parts = [f"Profile {run.config.get('profile', '?')}: {base_name(run)}"]
    if sizes := run.certified("vocabulary"):
        parts.append(f"with its vocabulary cut to {show.count(sizes[1])} ids")
    pairs = trained_pairs(run)
    if pairs:
        parts.append("tuned on " + " and ".join(f"{show.count(rows)} {side} pairs" for side, rows in pairs.items()))
    if run.weights:
        parts.append(f"merged by {str(run.weights.get('method', '?')).replace('_', ' ')}")
    return ", ".join(parts) + "."


def caution(run: RunRecord) -> str | None:
    """What this run is not, where it doesn't start from bge-m3."""
    if ((run.config.get("base") or {}).get("hub") or "").lower() == PUBLISHED_BASE.lower():
        return None
    return (
        f"This is not USER-bge-m3: that model starts from {PUBLISHED_BASE} and was tuned on more than two million "
        "pairs. A run like this one shows that the chain works, not what the recipe reaches."
    )


def trained_pairs(run: RunRecord) -> dict[str, int]:
    """Rows that each side trains on, from the ledger."""
    pairs: dict[str, int] = {}
    for entry in run.training_sets:
        pairs[entry["side"]] = pairs.get(entry["side"], 0) + (entry.get("train") or 0)
    return {side: rows for side, rows in pairs.items() if rows}


def headline(run: RunRecord) -> list[tuple[str, Any]]:
    """The few figures at the top of the page."""
    facts: list[tuple[str, Any]] = [("Base", base_name(run))]
    for what in CERTIFIED:
        if sizes := run.certified(what):
            facts.append((what.capitalize(), f"{show.count(sizes[0])} → {show.count(sizes[1])}"))
    for suite, task, metric, words in HEADLINES:
        before, after = (run.scored(model, suite, task, metric) for model in ("base", "merge"))
        if before and after:
            found = run.difference("merge", "base", suite, task)
            bounds = (found.ci_low, found.ci_high) if found and found.metric == metric else (None, None)
            facts.append((f"{words}, base → merge", show.change(before.value, after.value, *bounds)))
            break
    seconds = [stage.manifest.seconds for stage in run.stages.values() if stage.manifest]
    return [*facts, ("Time of all stages", show.duration(sum(seconds)))] if seconds else facts


def chain_groups(run: RunRecord) -> list[list[dict[str, str]]]:
    """The picture of the chain: stages side by side that don't depend on each other."""
    groups = [[run.stages[name] for name in names if name in run.stages] for names in GROUPS]
    return [
        [{"name": stage.name, "status": status(run, stage), "mark": mark(run, stage)} for stage in g] for g in groups
    ]


def status(run: RunRecord, stage: StageRecord) -> str:
    """The manifest's status, and whether inputs have been made anew since."""
    outdated = run.outdated(stage.name) if stage.complete else []
    return f"of an earlier {' and '.join(outdated)}" if outdated else stage.status


def mark(run: RunRecord, stage: StageRecord) -> str:
    """The CSS class of a stage's state."""
    return "outdated" if stage.complete and run.outdated(stage.name) else stage.status.replace(" ", "-")


FIGURES = 6  # of a manifest's metrics
CHAIN_COLUMNS = ["stage", "time", "peak memory", "size on disk", "what came out", "fingerprint"]


def chain_rows(run: RunRecord) -> list[list[Any]]:
    """One row a stage."""
    longest = max((stage.manifest.seconds for stage in run.stages.values() if stage.manifest), default=0.0)
    rows = []
    for stage in run.stages.values():
        made = stage.manifest
        if made is None:
            rows.append([show.row_head(stage.name, "not run"), *[show.DASH] * 5])
            continue
        disk = sum(entry["bytes"] for entry in made.outputs.values())
        took = show.bar(show.duration(made.seconds), made.seconds, longest)
        told = [(name, value) for name, value in made.metrics.items() if isinstance(value, str | int | float)]
        figures = "; ".join(f"{name.replace('_', ' ')} {show.number(value)}" for name, value in told[:FIGURES])
        memory = show.size(made.peak_rss_bytes or None)
        head, mark = show.row_head(stage.name, status(run, stage)), show.fingerprint(made.fingerprint)
        rows.append([head, took, memory, show.size(disk), show.long(figures), mark])
    return rows


def chain_notes(run: RunRecord) -> Iterator[str]:
    """What a reader must know before believing the figures: failed stages, and parts of different runs."""
    for stage in run.stages.values():
        if stage.manifest and stage.status == "failed":
            yield f"Stage {stage.name} failed: {stage.manifest.error}"
    stale = {stage.name: run.outdated(stage.name) for stage in run.stages.values() if stage.complete}
    parts = [f"{name} (of an earlier {' and '.join(inputs)})" for name, inputs in stale.items() if inputs]
    if parts:
        yield f"The stages below are not of one piece: {', '.join(parts)}. make reproduce brings them up to date."


TOTALS = {
    "card_total_pairs": "pairs, the card's total",
    "built": "pairs built",
    "kept": "kept by cleaning",
    "train": "trained on",
    "dev": "held out for dev",
    "card_total_negatives": "negatives, the card's total",
    "negatives_the_card_counts": "negatives the card counts",
    "negatives_it_leaves_out": "negatives it leaves out",
}
LEDGER_COLUMNS = ["set", "card", "built", "other labels", "kept", "train", "dev", "dropped", "negatives", "verdict"]


def ledger_rows(run: RunRecord) -> list[list[Any]]:
    """One row a set that is trained on."""
    most = max((entry.get("train") or 0 for entry in run.training_sets), default=0)
    rows = []
    for entry in run.training_sets:
        counts = [show.count(entry.get(name)) for name in ("card", "built", "scored", "kept")]
        train = show.bar(show.count(entry.get("train")), entry.get("train") or 0, most)
        dropped = sum((entry.get("dropped") or {}).values())
        rest = [show.count(entry.get("dev")), show.count(dropped), show.count(entry.get("negatives"))]
        head, status = show.row_head(_title(entry), entry["side"]), show.long(str(entry["status"]))
        rows.append([head, *counts, train, *rest, status])
    return rows


def held_out_rows(run: RunRecord) -> list[list[Any]]:
    """One row a set that is never trained on."""
    return [
        [_title(entry), show.count(entry.get("built")), show.count(entry.get("kept"))] for entry in run.held_out_sets
    ]


def source_rows(run: RunRecord) -> list[list[Any]]:
    """Where each set's rows come from, and on which terms."""
    rows = []
    for entry in (run.ledger or {}).get("sets", []):
        words = [str(entry.get(name) or show.DASH) for name in ("source", "revision", "licence")]
        told = " ".join(str(entry[name]) for name in ("difference", "note") if entry.get(name))
        rows.append([_title(entry), *(show.long(word) for word in words), show.long(told)])
    return rows


def ledger_facts(run: RunRecord) -> list[tuple[str, str]]:
    """The ledger's totals."""
    totals = (run.ledger or {}).get("totals") or {}
    return [(words, show.count(totals[name])) for name, words in TOTALS.items() if totals.get(name) is not None]


def dropped_rows(run: RunRecord) -> tuple[list[str], list[list[Any]]]:
    """Sets by reasons for dropping a row; only what occurs."""
    sets = [entry for entry in (run.ledger or {}).get("sets", []) if any((entry.get("dropped") or {}).values())]
    reasons = list(dict.fromkeys(reason for entry in sets for reason, rows in entry["dropped"].items() if rows))
    rows = [
        [_title(entry), *(show.count(entry["dropped"].get(reason) or None) for reason in reasons)] for entry in sets
    ]
    return ["set", *(reason.replace("_", " ") for reason in reasons)], rows


def _title(entry: dict[str, Any]) -> str:
    return str(entry.get("title") or entry["name"])


def certificate_sizes(run: RunRecord) -> list[list[Any]]:
    """Everything that the certificate gives before and after."""
    stems = [key.removesuffix("_before") for key in run.certificate or {} if key.endswith("_before")]
    sizes = {stem: pair for stem in stems if (pair := run.certified(stem))}
    return [
        [stem.replace("_", " "), show.count(before), show.count(after), show.share(after, before)]
        for stem, (before, after) in sizes.items()
    ]


def certificate_facts(run: RunRecord) -> list[tuple[str, Any]]:
    """The certificate's single values."""
    sizes = {row[0] for row in certificate_sizes(run)}
    return [
        (name.replace("_", " "), show.number(value))
        for name, value in (run.certificate or {}).items()
        if isinstance(value, str | int | float)
        and name != "guarantee"
        and name.rpartition("_")[0].replace("_", " ") not in sizes
    ]


def certificate_tables(run: RunRecord) -> list[tuple[str, list[str], list[list[Any]]]]:
    """The certificate's groups of values (texts checked by corpus, pieces by language), as tables."""
    tables = []
    for name, value in (run.certificate or {}).items():
        if rows := _records(value):
            columns = list(dict.fromkeys(column for row in rows for column in row))
            cells = [[show.number(row.get(column)) for column in columns] for row in rows]
            tables.append((_words(name).capitalize(), [_words(column) for column in columns], cells))
    return tables


def _records(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, dict) or not value:
        return []
    if all(isinstance(item, dict) for item in value.values()):
        return [{"": name, **item} for name, item in value.items()]
    return [{"": _words(name), "value": item} for name, item in value.items() if not isinstance(item, dict)]


def _words(name: str) -> str:
    return name.replace("_", " ")


ENVIRONMENT_COLUMNS = ["stage", "Python", "machine", "cores", "processes", "packages"]


def environment_rows(run: RunRecord) -> list[list[Any]]:
    """Where each stage ran, and with which versions."""
    rows = []
    for stage in run.stages.values():
        here = stage.manifest.environment if stage.manifest else {}
        if here:
            packages = ", ".join(f"{name} {version}" for name, version in (here.get("packages") or {}).items())
            values = [str(here.get(name, show.DASH)) for name in ("python", "platform", "cores", "processes")]
            rows.append([stage.name, *values, show.long(packages)])
    return rows
