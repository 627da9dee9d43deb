"""Every number in the published model card next to this run's: report/claims.csv.

`claims.csv` lists the claims: a key by which this module finds our figure, the figure as printed, the tolerance
within which ours counts as close, and where the figure was published. The tolerances are: half a unit of the last
printed digit for sizes that the card rounds; one digit of rounding for scores of bge-m3, which any run can reproduce;
for scores of a retrained model, that plus twice the standard error of a score on the task.
"""

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from evaluation.models import read_model_facts
from evaluation.published_scores import AVERAGED, CARD_SUITE, CARD_TABLES, GROUPS, PUBLISHED_BASE
from evaluation.report.record import RunRecord

CLAIMS = Path(__file__).with_name("claims.csv")
COLUMNS = ("claim", "card", "ours", "tolerance", "verdict", "where")
STAGE_OF = {  # kind of a claim -> the stage that measures it; evaluate for all others
    **dict.fromkeys(("pairs", "negatives"), "data"),
    **dict.fromkeys(("vocabulary", "parameters", "dimension"), "init"),
    "usage": "merge",
}
VERDICTS = ("equal", "close", "differs", "not run")


@dataclass(frozen=True)
class Claim:
    """One line of claims.csv; `card` and `tolerance` as printed, `ours` None if nothing was measured."""

    key: str
    claim: str
    card: str
    ours: float | None
    tolerance: str
    where: str

    @property
    def digits(self) -> int:
        """Decimals that the card prints."""
        return len(self.card.partition(".")[2])

    @property
    def verdict(self) -> str:
        """equal: the same printed digits; close: within the tolerance; otherwise differs, or not run."""
        if self.ours is None:
            return "not run"
        if f"{self.ours:.{self.digits}f}" == self.card:
            return "equal"
        return "close" if abs(self.ours - float(self.card)) <= float(self.tolerance) + 1e-9 else "differs"

    @property
    def printed(self) -> str:
        """Our figure with two more decimals than the card's; empty if it was not measured."""
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
    claims = []
    for row in rows:
        ours, where = _find(run, row["key"], similarities or {})
        claims.append(Claim(row["key"], row["claim"], row["card"], ours, row["tolerance"], where))
    return claims


def claims_csv(claims: Iterable[Claim]) -> str:
    """The text of claims.csv."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for claim in claims:
        writer.writerow([claim.claim, claim.card, claim.printed, claim.tolerance, claim.verdict, claim.where])
    return text.getvalue()


def published_base(run: RunRecord) -> str | None:
    """The name of BAAI/bge-m3 in scores.csv, or None if the run does not score it."""
    if run.starts_from_published_base and run.reference == "base":
        return "base"
    return next((score.model for score in run.scores if score.model.lower() == PUBLISHED_BASE.lower()), None)


def _find(run: RunRecord, key: str, similarities: dict[tuple[int, int], float]) -> tuple[float | None, str]:
    """Our figure and where it is from; or None and why there is none, in a few words."""
    kind, _, rest = key.partition("/")
    if (stage := STAGE_OF.get(kind, "evaluate")) not in run.complete:
        return None, f"stage {stage} is not complete"
    absent = None, f"not measured by profile {run.config['profile']}"
    match kind:
        case "pairs":
            return _pairs(run, rest)
        case "negatives":
            value = ((run.ledger or {}).get("totals") or {}).get("negatives_the_card_counts")
            return (value, "data/ledger.json: totals, negatives_the_card_counts") if value else absent
        case "vocabulary" | "parameters":
            sizes = run.certified(kind)
            return (sizes[1], f"init/certificate.json: {kind}_after") if sizes else absent
        case "dimension":
            return read_model_facts(run.model_folder("init")).dimension, "init/config.json: hidden_size"
        case "encodechka" | "mteb":
            who, _, row = rest.partition("/")
            table, model = CARD_TABLES[kind], published_base(run) if who == "bge-m3" else "merge"
            if model is None:
                return None, f"{PUBLISHED_BASE} is not among the models of this run"
            found = run.on_card(model, table, row)
            return (found.score, f"evaluate/scores.csv: {model}, {table.suite}, {row}") if found else absent
        case "tasks":
            parts = [part for name in AVERAGED if rest in ("all", name.partition(" ")[0]) for part in GROUPS[name]]
            done = all(any(run.scored("merge", CARD_SUITE, task, name) for name in names) for task, names in parts)
            return (len(parts), f"evaluate/scores.csv: tasks of {CARD_SUITE} scored for merge") if done else absent
        case "usage":
            query, _, passage = rest.partition("/")
            if (int(query), int(passage)) not in similarities:
                return None, "the published card was not read (evaluation.report.card)"
            return similarities[int(query), int(passage)], "merge/model on the texts of the published card"
    return absent


def _pairs(run: RunRecord, name: str) -> tuple[float | None, str]:
    counted = [entry["built"] for entry in run.training_sets if entry["card"] and entry["built"]]
    if name == "total" and counted:
        return sum(counted), "data/ledger.json: built, summed over the card's sets"
    entry = {entry["name"]: entry for entry in run.sets}.get(name)
    if entry is None:
        return None, f"not among the sources of profile {run.config['profile']}"
    if not entry["built"]:
        return None, f"data/ledger.json: {entry['status']}"
    reason = "rows of a bundled sample, not of the set" if run.bundled(entry) else entry["difference"]
    return entry["built"], f"data/ledger.json: {name}, built" + (f" ({reason})" if reason else "")
