"""Every number of the published model card beside this run's own: report/claims.csv.

The claims stand in `card_claims.csv`: a key that says where this module finds our figure, the figure as printed, the
tolerance within which ours counts as close, and where the figure was published. The tolerances are: half a unit of
the last printed digit for sizes that the card shows rounded; for scores of bge-m3, which any run can repeat, one
digit of rounding; for scores of a model trained anew, that and twice the standard error of a score on the task.
"""

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from evaluation.model_folder import read_model_facts
from evaluation.run_record import RunRecord

CLAIMS = Path(__file__).with_name("card_claims.csv")
COLUMNS = ("claim", "card", "ours", "tolerance", "verdict", "where")
VERDICTS = ("equal", "close", "differs", "not run")
PUBLISHED_BASE, PUBLISHED_MODEL = "BAAI/bge-m3", "deepvk/USER-bge-m3"

SENTENCE_TASKS = {  # encodechka: task -> metric
    "STS": "spearman",
    "PI": "spearman",
    "NLI": "accuracy",
    "SA": "accuracy",
    "TI": "roc_auc",
    "IA": "roc_auc",
    "IC": "accuracy",
    "ICX": "accuracy",
}
WORD_TASKS = {"NE1": "macro_f1", "NE2": "macro_f1"}

CLASSIFICATION = (
    "CyrillicTurkicLangClassification",
    "LanguageClassification",
    "MassiveIntentClassification",
    "MassiveScenarioClassification",
    "SIB200Classification",
    "GeoreviewClassification",
    "HeadlineClassification",
    "InappropriatenessClassification",
    "KinopoiskClassification",
    "RuReviewsClassification",
    "RuSciBenchGRNTIClassification",
    "RuSciBenchOECDClassification",
)
RETRIEVAL = (
    "BelebeleRetrieval",
    "MultiLongDocRetrieval",
    "PublicHealthQA",
    "XQuADRetrieval",
    "RiaNewsRetrieval",
    "RuBQRetrieval",
)
SIMILARITY = ("RUParaPhraserSTS", "RuSTSBenchmarkSTS", "STS22", "STSBenchmarkMultilingualSTS")


@dataclass(frozen=True)
class Group:
    """A row of the card's MTEB table: its tasks, and the metric that fits the card's figure, by its names in mteb."""

    tasks: Sequence[str]
    metrics: Sequence[str]


GROUPS = {
    "Classification": Group(CLASSIFICATION, ("accuracy",)),
    "Reranking": Group(("MIRACLReranking", "RuBQReranking"), ("map_at_1000", "map", "ndcg_at_10")),
    "MultilabelClassification": Group(("CEDRClassification", "SensitiveTopicsClassification"), ("accuracy",)),
    "STS by Pearson": Group(SIMILARITY, ("cosine_pearson", "pearson")),
    "STS by Spearman": Group(SIMILARITY, ("cosine_spearman", "spearman")),
    "Retrieval by Recall@100": Group(RETRIEVAL, ("recall_at_100",)),
    "Retrieval by nDCG@10": Group(RETRIEVAL, ("ndcg_at_10",)),
    "PairClassification": Group(("OpusparcusPC", "TERRa", "XNLI", "XNLIV2"), ("max_ap", "ap")),
}
TASK_METRICS = {"MIRACLReranking": ("ndcg_at_10",), "RuBQReranking": ("map_at_1000", "map")}  # unlike their group
DOMINANT = ("LanguageClassification", "XNLI", "XNLIV2")  # two thirds of the card's whole gain
AVERAGE, WITHOUT = "Average", f"Average without {', '.join(DOMINANT)}"
AVERAGED = tuple(name for name in GROUPS if name not in ("STS by Spearman", "Retrieval by nDCG@10"))


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
    if ((run.config.get("base") or {}).get("hub") or "").lower() == PUBLISHED_BASE.lower():
        return "base"
    return next((score.model for score in run.scores if score.model.lower() == PUBLISHED_BASE.lower()), None)


def encodechka_score(run: RunRecord, model: str, task: str) -> float | None:
    """A task's score, or one of the two means over all their tasks."""
    means = {"Mean S": [*SENTENCE_TASKS], "Mean S+W": [*SENTENCE_TASKS, *WORD_TASKS]}
    if task not in means:
        return run.score(model, "encodechka", task, (SENTENCE_TASKS | WORD_TASKS)[task])
    return _mean_of_all(encodechka_score(run, model, part) for part in means[task])


def mteb_score(run: RunRecord, model: str, group: str) -> float | None:
    """The mean of a group's tasks, of all 30, or of all but the dominant three; None while a task is missing."""
    if group in (AVERAGE, WITHOUT):
        left_out = DOMINANT if group == WITHOUT else ()
        tasks = [(name, task) for name in AVERAGED for task in GROUPS[name].tasks if task not in left_out]
        return _mean_of_all(_task_score(run, model, name, task) for name, task in tasks)
    return _mean_of_all(_task_score(run, model, group, task) for task in GROUPS[group].tasks)


def _task_score(run: RunRecord, model: str, group: str, task: str) -> float | None:
    metrics = TASK_METRICS.get(task, GROUPS[group].metrics)
    return next((s for name in metrics if (s := run.score(model, "card_30", task, name)) is not None), None)


def _mean_of_all(values: Iterable[float | None]) -> float | None:
    known = list(values)
    return fmean(value for value in known if value is not None) if known and None not in known else None


def _find(run: RunRecord, key: str, similarities: dict[tuple[int, int], float]) -> Found | None:
    kind, _, rest = key.partition("/")
    finders: dict[str, Callable[[], Found | None]] = {
        "pairs": lambda: _pairs(run, rest),
        "negatives": lambda: _negatives(run),
        "vocabulary": lambda: _certified(run, "vocabulary"),
        "parameters": lambda: _certified(run, "parameters"),
        "dimension": lambda: _dimension(run),
        "encodechka": lambda: _scored(run, rest, encodechka_score, "encodechka"),
        "mteb": lambda: _scored(run, rest, mteb_score, "card_30"),
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
    run: RunRecord, rest: str, score: Callable[[RunRecord, str, str], float | None], suite: str
) -> Found | None:
    who, _, row = rest.partition("/")
    model = published_base(run) if who == "bge-m3" else "merge"
    value = score(run, model, row) if model else None
    return Found(value, f"evaluate/scores.csv: {model}, {suite}, {row}") if value is not None else None


def _tasks(run: RunRecord, group: str) -> Found | None:
    names = [name for name in AVERAGED if group in ("all", name.partition(" ")[0])]
    done = [task for name in names for task in GROUPS[name].tasks if _task_score(run, "merge", name, task) is not None]
    return Found(len(done), "evaluate/scores.csv: tasks of card_30 scored for merge") if done else None


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
