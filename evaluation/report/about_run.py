"""The page's sections on what was run: summary, chain, dataset ledger, vocabulary certificate, environment."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import yaml
from markupsafe import Markup

from configs.schema.config import SIDES, remake
from data.ledger import HELD_OUT, WRONG_NEGATIVES
from evaluation.report import format as show
from evaluation.report import page
from evaluation.report.record import RunRecord

GROUPS = (("data",), ("init",), tuple(SIDES), ("merge",), ("heads",), ("export", "evaluate"))
HEADLINES = (  # (suite, task, metric, words); the first one measured is shown
    ("encodechka", "Mean S", "mean", "encodechka, mean of sentence tasks"),
    ("wiktionary", "term_to_definition", "recall_at_1", "R@1, term to definition"),
)
FIGURES = 6  # shown of a manifest's metrics
TOTALS = {
    "card_total_pairs": "pairs, the card's total",
    "built": "pairs built",
    "scored": "in addition, rows with other labels",
    "kept": "kept by cleaning",
    "train": "trained on",
    "dev": "held out for dev",
    "negatives": "negatives",
    "card_total_negatives": "negatives, the card's total",
    "negatives_the_card_counts": "negatives the card counts",
    "negatives_it_leaves_out": "negatives it leaves out",
}
BESIDE_THE_CARD = ("card_total_pairs", "card_total_negatives", "negatives_the_card_counts", "negatives_it_leaves_out")


def head(run: RunRecord) -> list[Markup]:
    """The top of the page: what was made from what, any caution, and the main figures."""
    return [page.text(_made_of(run), "lede"), page.text(run.caution or "", "caution"), page.facts(_headline(run))]


def _made_of(run: RunRecord) -> str:
    parts = [f"Profile {run.config['profile']}: {run.base_name}"]
    if run.is_cut and (sizes := run.certified("vocabulary")):
        parts.append(f"with its vocabulary cut to {show.count(sizes[1])} ids")
    pairs = Counter[str]()
    for entry in run.training_sets:
        pairs[entry["side"]] += entry["train"]
    if tuned := [f"{show.count(rows)} {side} pairs" for side, rows in pairs.items() if rows]:
        parts.append("tuned on " + " and ".join(tuned))
    if run.weights:
        parts.append(f"merged by {str(run.weights.get('method', '?')).replace('_', ' ')}")
    return ", ".join(parts) + "."


def _headline(run: RunRecord) -> list[tuple[str, Any]]:
    facts: list[tuple[str, Any]] = [("Base", run.base_name)]
    for what in ("vocabulary", "parameters"):
        if sizes := run.certified(what):
            facts.append((what.capitalize(), " → ".join(dict.fromkeys(map(show.count, sizes)))))
    for suite, task, metric, words in HEADLINES:
        before, after = (run.scored(model, suite, task, metric) for model in (run.reference, "merge"))
        if before and after:
            found = run.difference("merge", run.reference, suite, task)
            change = show.change(before, after, found if found and found.metric == metric else None)
            facts.append((f"{words}, {run.reference} → merge", change))
            break
    seconds = [made.seconds for made in run.made.values()]
    return [*facts, ("Time of all stages", show.duration(sum(seconds)))] if seconds else facts


def chain(run: RunRecord) -> page.Section:
    """The picture of the chain, each stage's time and memory, and warnings about the figures."""
    marks = {  # CSS class of each stage's status
        name: "outdated" if run.outdated(name) else run.status(name).replace(" ", "-") for name in run.stages
    }
    groups = [[(name, marks[name], run.status(name)) for name in names if name in marks] for names in GROUPS]
    groups = [group for group in groups if group]
    columns = ["stage", "time", "peak memory", "size on disk", "result", "fingerprint"]
    stages = page.table("Stages, with their results and resources used", columns, _stage_rows(run))
    notes = [page.text(note, "caution") for note in _notes(run)]
    return page.Section("chain", "The chain", [page.steps(groups), stages, *notes])


def _stage_rows(run: RunRecord) -> list[list[Any]]:
    longest = max((made.seconds for made in run.made.values()), default=0.0)
    rows = []
    for name, made in run.stages.items():
        if made is None:
            rows.append([show.row_head(name, "not run"), *[show.DASH] * 5])
            continue
        disk = sum(entry["bytes"] for entry in made.outputs.values())
        took = show.bar(show.duration(made.seconds), made.seconds, longest)
        measured = [(what, value) for what, value in made.metrics.items() if isinstance(value, str | int | float)]
        figures = "; ".join(f"{_words(what)} {show.number(value)}" for what, value in measured[:FIGURES])
        head, memory = show.row_head(name, run.status(name)), show.size(made.peak_rss_bytes or None)
        if made.peak_gpu_bytes:
            memory = show.row_head(memory, f"GPU {show.size(made.peak_gpu_bytes)}")
        rows.append([head, took, memory, show.size(disk), show.long(figures), show.fingerprint(made.fingerprint)])
    return rows


def _notes(run: RunRecord) -> Iterator[str]:
    """Failed stages, and stages made from earlier inputs."""
    for name, made in run.made.items():
        if made.status == "failed":
            yield f"Stage {name} failed: {made.error}"
    if old := [name for name in run.made if run.outdated(name)]:
        parts = ", ".join(f"{name} ({run.status(name)})" for name in old)
        of = f" PROFILE={run.config['profile']} RUN={run.config['run']}"
        yield f"Some stages are out of date: {parts}. To bring them up to date: {remake(old, of)}."


def data(run: RunRecord) -> page.Section:
    """The dataset ledger."""
    if run.ledger is None:
        return page.Section("data", "Data", [page.absent("data")])
    totals = run.ledger["totals"] | {"scored": sum(entry["scored"] for entry in run.training_sets) or None}
    held_out = [
        [entry["title"], show.count(entry["built"]), show.count(entry["kept"])]
        for entry in run.sets
        if entry["side"] == HELD_OUT
    ]
    card, counted, last = (["card"], "counted by the card, ", "verdict") if run.about_the_card else ([], "", "remark")
    shown = [name for name in TOTALS if totals.get(name) is not None and (card or name not in BESIDE_THE_CARD)]
    blocks = [
        page.facts([(TOTALS[name], show.count(totals[name])) for name in shown]),
        page.table(
            f"Dataset ledger: pairs {counted}built (apart from rows with labels that only AnglE uses), kept by "
            "cleaning, and trained on",
            ["set", *card, "built", "other labels", "kept", "train", "dev", "dropped", "negatives", last],
            _ledger_rows(run),
        ),
        page.table("Held out of training", ["set", "built", "kept"], held_out),
        page.folded("Rows and negatives dropped, by reason", _dropped(run)),
        page.folded("Sources and licences", _sources(run)),
    ]
    return page.Section("data", "Data", blocks)


def _ledger_rows(run: RunRecord) -> list[list[Any]]:
    """One row per training set."""
    most = max((entry["train"] for entry in run.training_sets), default=0)
    rows = []
    for entry in run.training_sets:
        card = ["card"] if run.about_the_card else []
        counts = [show.count(entry[name]) for name in (*card, "built", "scored", "kept")]
        train = show.bar(show.count(entry["train"]), entry["train"], most)
        dropped = sum(rows for reason, rows in entry["dropped"].items() if reason != WRONG_NEGATIVES)
        rest = [show.count(entry["dev"]), show.count(dropped), show.count(entry["negatives"])]
        remark = entry["status"] if run.about_the_card or entry["status"].startswith("skipped") else ""
        rows.append([show.row_head(entry["title"], entry["side"]), *counts, train, *rest, show.long(remark)])
    return rows


def _sources(run: RunRecord) -> Markup:
    """Where each set's rows come from, and under which terms."""
    rows = []
    for entry in run.sets:
        revision = entry["revision"].removesuffix(f" {entry['source']}")
        entry = {**entry, "revision": revision, **run.of_samples(entry)}
        words = [show.long(entry[key]) for key in ("source", "revision", "licence")]
        remarks = " ".join(entry[key] for key in ("difference", "note") if entry[key])
        rows.append([entry["title"], *words, show.long(remarks)])
    columns = ["set", "source", "revision", "licence", "remarks"]
    return page.table("Where the rows come from, and under which terms", columns, rows)


def _dropped(run: RunRecord) -> Markup:
    """Dropped rows by set and reason, without empty rows and columns."""
    sets = [entry for entry in run.sets if any(entry["dropped"].values())]
    reasons = list(dict.fromkeys(reason for entry in sets for reason, rows in entry["dropped"].items() if rows))
    rows = [
        [entry["title"], *(show.count(entry["dropped"].get(reason) or None) for reason in reasons)] for entry in sets
    ]
    return page.table("Rows and negatives dropped, by reason", ["set", *map(_words, reasons)], rows)


def vocabulary(run: RunRecord) -> page.Section:
    """The certificate: what it guarantees, sizes before and after, single values, and groups of values as tables."""
    found = run.certificate
    if not found:
        return page.Section("vocabulary", "Vocabulary", [page.absent("init")])
    stems = [key.removesuffix("_before") for key in found if key.endswith("_before")]
    pairs = {stem: pair for stem in stems if (pair := run.certified(stem))}
    sizes = [
        [_words(stem), show.count(before), show.count(after), show.share(after, before)]
        for stem, (before, after) in pairs.items()
    ]
    single = [
        (_words(name), show.number(value))
        for name, value in found.items()
        if isinstance(value, str | int | float) and name != "guarantee" and name.rpartition("_")[0] not in pairs
    ]
    blocks = [
        page.text(found.get("guarantee", "")),
        page.table("Before and after", ["", "before", "after", "kept"], sizes),
        page.facts(single),
        page.group("tables", [_values(name, value) for name, value in found.items() if isinstance(value, dict)]),
    ]
    return page.Section("vocabulary", "Vocabulary", blocks)


def _values(name: str, value: dict[str, Any]) -> Markup:
    """A group of values (texts checked by corpus, pieces by language): a row each, with columns for nested values."""
    if all(isinstance(item, dict) for item in value.values()):
        rows = [{"": key, **item} for key, item in value.items()]
    else:
        flat = {key: item for key, item in value.items() if not isinstance(item, dict)}
        rows = [{"": _words(key), "value": _figure(key, item)} for key, item in flat.items()]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    cells = [[_figure(column, row.get(column)) for column in columns] for row in rows]
    return page.table(_words(name).capitalize(), [_words(column) for column in columns], cells)


def _figure(name: str, value: Any) -> str:
    return show.share(value) if name == "occurrences_kept" else show.number(value)


def _words(name: str) -> str:
    return name.replace("_", " ")


def environment(run: RunRecord) -> page.Section:
    """Where each stage ran, its package versions, and the last stage's config."""
    rows, packages = [], dict[str, list[str]]()
    for name, made in run.made.items():
        if facts := made.environment:
            gpu = ", driver ".join(str(facts[what]) for what in ("gpu", "gpu_driver") if facts.get(what))
            values = [str(facts.get(what, show.DASH)) for what in ("python", "cores", "processes")]
            machine = [show.long(str(facts.get("platform", show.DASH))), *values, show.long(gpu)]
            rows.append([name, *machine, show.fingerprint(facts.get("commit"))])
            versions = ", ".join(f"{package} {version}" for package, version in (facts.get("packages") or {}).items())
            packages.setdefault(versions, []).append(name)
    columns = ["stage", "machine", "Python", "cores", "processes", "GPU", "code commit"]
    used = [[", ".join(stages), show.long(versions)] for versions, stages in packages.items()]
    config = yaml.safe_dump(run.config, allow_unicode=True, sort_keys=False)
    blocks = [
        page.table("Machine and code commit of each stage", columns, rows) or page.absent("data"),
        page.table("Packages", ["stages", "versions"], used),
        page.folded("Resolved config of the last stage", page.code(config)),
    ]
    return page.Section("environment", "Environment", blocks)
