"""Every number of the published model card beside this run's own: report/claims.csv.

The claims stand in `claims.csv`: a key that says where this module finds our figure, the figure as printed, the
tolerance within which ours counts as close, and where the figure was published. The tolerances are: half a unit of
the last printed digit for sizes that the card shows rounded; for scores of bge-m3, which any run can repeat, one
digit of rounding; for scores of a model trained anew, that and twice the standard error of a score on the task.
"""

import csv
import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from evaluation.models import read_model_facts
from evaluation.published import AVERAGED, CARD_ENCODECHKA, CARD_SUITE, ENCODECHKA_MEANS, GROUPS, PUBLISHED_BASE
from evaluation.report.record import RunRecord
from evaluation.results import MEAN, Score

CLAIMS = Path(__file__).with_name("claims.csv")
COLUMNS = ("claim", "card", "ours", "tolerance", "verdict", "where")
VERDICTS = ("equal", "close", "differs", "not run")


@dataclass(frozen=True)
class Found:
    """Our figure and where it stands."""

    value: float
    where: str


@dataclass(frozen=True)
class Claim:
    """One line of claims.csv; `card` and `tolerance` as printed, `ours` None where nothing was measured."""

    key: str
    claim: str
    card: str
    ours: float | None
    tolerance: str
    where: str
    source: str

    @property
    def digits(self) -> int:
        """Digits after the point that the card prints."""
        return len(self.card.partition(".")[2])

    @property
    def verdict(self) -> str:
        """equal: the same printed digits; close: within the tolerance; else differs, or not run."""
        if self.ours is None:
            return "not run"
        if f"{self.ours:.{self.digits}f}" == self.card:
            return "equal"
        return "close" if abs(self.ours - float(self.card)) <= float(self.tolerance) + 1e-9 else "differs"

    @property
    def printed(self) -> str:
        """Our figure with two more digits than the card's, empty where it was not measured."""
        if self.ours is None:
            return ""
        return f"{self.ours:.{self.digits + 2}f}" if self.digits else f"{self.ours:.0f}"

    @property
    def group(self) -> str:
        return self.key.partition("/")[0]


def check_claims(run: RunRecord, similarities: dict[tuple[int, int], float] | None = None) -> list[Claim]:
    """All claims with this run's figures; `similarities` of the usage example by (query, passage), where computed."""
    with CLAIMS.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    made = []
    for row in rows:
        found = _find(run, row["key"], similarities or {})
        place = found.where if found else _missing(run, row["key"])
        ours = found.value if found else None
        made.append(Claim(row["key"], row["claim"], row["card"], ours, row["tolerance"], place, row["source"]))
    return made


def claims_csv(claims: Iterable[Claim]) -> str:
    """The text of claims.csv."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for claim in claims:
        writer.writerow([claim.claim, claim.card, claim.printed, claim.tolerance, claim.verdict, claim.where])
    return text.getvalue()


def published_base(run: RunRecord) -> str | None:
    """The name in scores.csv of the model that is BAAI/bge-m3, or None where the run does not score it."""
    if run.starts_from_published_base:
        return "base"
    return next((score.model for score in run.scores if score.model.lower() == PUBLISHED_BASE.lower()), None)


def encodechka_score(run: RunRecord, model: str, row: str) -> Score | None:
    """A model's score in a row of the card's encodechka table: a task, or one of the two means."""
    metric = MEAN if row in ENCODECHKA_MEANS else CARD_ENCODECHKA[row][0][1][0]
    return run.scored(model, "encodechka", row, metric)


def mteb_score(run: RunRecord, model: str, row: str) -> Score | None:
    """A model's mean in a row of the card's MTEB table; None while one of its tasks is not scored."""
    return run.scored(model, CARD_SUITE, row, MEAN)


def _find(run: RunRecord, key: str, similarities: dict[tuple[int, int], float]) -> Found | None:
    kind, _, rest = key.partition("/")
    finders: dict[str, Callable[[], Found | None]] = {
        "pairs": lambda: _pairs(run, rest),
        "negatives": lambda: _negatives(run),
        "vocabulary": lambda: _certified(run, "vocabulary"),
        "parameters": lambda: _certified(run, "parameters"),
        "dimension": lambda: _dimension(run),
        "encodechka": lambda: _scored(run, rest, encodechka_score, "encodechka"),
        "mteb": lambda: _scored(run, rest, mteb_score, CARD_SUITE),
        "tasks": lambda: _tasks(run, rest),
        "usage": lambda: _similarity(rest, similarities),
    }
    return finders[kind]()


def _sets(run: RunRecord) -> dict[str, dict]:
    return {entry["name"]: entry for entry in (run.ledger or {}).get("sets", [])}


def _pairs(run: RunRecord, name: str) -> Found | None:
    sets = _sets(run)
    if name == "total":
        counted = [entry["built"] for entry in sets.values() if entry.get("card") and entry.get("built")]
        return Found(sum(counted), "data/ledger.json: built, summed over the card's sets") if counted else None
    entry = sets.get(name)
    if not entry or not entry.get("built"):
        return None
    reason = "rows of a bundled sample, not of the set" if run.bundled(entry) else entry.get("difference")
    return Found(entry["built"], f"data/ledger.json: {name}, built" + (f" ({reason})" if reason else ""))


def _negatives(run: RunRecord) -> Found | None:
    value = ((run.ledger or {}).get("totals") or {}).get("negatives_the_card_counts")
    return Found(value, "data/ledger.json: totals, negatives_the_card_counts") if value else None


def _certified(run: RunRecord, what: str) -> Found | None:
    sizes = run.certified(what)
    return Found(sizes[1], f"init/certificate.json: {what}_after") if sizes else None


def _dimension(run: RunRecord) -> Found | None:
    if not run.stages["init"].complete:
        return None
    return Found(read_model_facts(run.model_folder("init")).dimension, "init/config.json: hidden_size")


def _scored(
    run: RunRecord, rest: str, score: Callable[[RunRecord, str, str], Score | None], suite: str
) -> Found | None:
    who, _, row = rest.partition("/")
    model = published_base(run) if who == "bge-m3" else "merge"
    found = score(run, model, row) if model else None
    return Found(found.score, f"evaluate/scores.csv: {model}, {suite}, {row}") if found else None


def _tasks(run: RunRecord, group: str) -> Found | None:
    parts = [part for name in AVERAGED if group in ("all", name.partition(" ")[0]) for part in GROUPS[name]]
    done = sum(any(run.scored("merge", CARD_SUITE, task, metric) for metric in metrics) for task, metrics in parts)
    return Found(done, f"evaluate/scores.csv: tasks of {CARD_SUITE} scored for merge") if done else None


def _similarity(rest: str, similarities: dict[tuple[int, int], float]) -> Found | None:
    query, _, passage = rest.partition("/")
    value = similarities.get((int(query), int(passage)))
    return Found(value, "merge/model on the texts of the published card") if value is not None else None


def _missing(run: RunRecord, key: str) -> str:
    """Why there is no figure of ours, in a few words."""
    kind, _, rest = key.partition("/")
    stage = {"pairs": "data", "negatives": "data", "vocabulary": "init", "parameters": "init", "dimension": "init"}
    needed = stage.get(kind, "merge" if kind == "usage" else "evaluate")
    if not run.stages[needed].complete:
        return f"stage {needed} is not complete"
    if kind == "pairs":
        entry = _sets(run).get(rest)
        return f"data/ledger.json: {entry['status']}" if entry else f"not among the sources of profile {_profile(run)}"
    if kind in ("encodechka", "mteb") and rest.startswith("bge-m3/") and published_base(run) is None:
        return f"{PUBLISHED_BASE} is not among the models of this run"
    if kind == "usage":
        return "the published card was not read (evaluation.report.card)"
    return f"not measured by profile {_profile(run)}"


def _profile(run: RunRecord) -> str:
    return str(run.config.get("profile", ""))
