"""Published figures of known models with their sources (published_scores.csv), and the rows of the card's two tables.

A row of USER-bge-m3's card is a mean over tasks. The card names neither its 30 Russian MTEB data sets nor their
metrics: both are inferred from its group means. STS and retrieval can be read in two ways; the averages use the first.
"""

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TypeVar

from configs.schema.evaluation import EvaluationConfig
from evaluation.results import MEAN
from pipeline.core.errors import UserError

PUBLISHED_BASE, PUBLISHED_MODEL = "BAAI/bge-m3", "deepvk/USER-bge-m3"
PUBLISHED = Path(__file__).with_name("published_scores.csv")
PUBLISHED_SUITES = {  # our suite -> published suites, the first with the figure is used
    "encodechka": ("encodechka",),
    "card_30": ("mteb-card30", "mteb-rus-v1"),
    "rus_v1_1": ("mteb-rus-v1.1", "mteb-rus-v1"),
}
RENAMED_METRICS = {"map": "map_at_1000"}  # names changed by mteb
RENAMED_TASKS = {
    "Mean (Task)": "Mean",
    "BelebeleRetrieval (mean of 3 pairs)": "BelebeleRetrieval",
    "STSBenchmarkMultilingualSTS (mean of dev and test)": "STSBenchmarkMultilingualSTS",
}
MEANS = ("Mean", "Mean S", "Mean S+W")
Figures = dict[tuple[str, str, str], tuple[float, str]]  # (suite, task, metric) -> score and source

Part = tuple[str, tuple[str, ...]]  # a task, and its metric's names, of which the first one found is used
Rows = dict[str, Sequence[Part]]
Found = TypeVar("Found")

CARD_SUITE = "card_30"  # the Russian MTEB suite that matches the card's table
AVERAGE = "Average"
DOMINANT = ("LanguageClassification", "XNLI", "XNLIV2")  # two thirds of the card's whole gain
WITHOUT = f"{AVERAGE} without {', '.join(DOMINANT)}"


def _parts(tasks: Sequence[str], *metrics: str) -> list[Part]:
    return [(task, metrics) for task in tasks]


SENTENCE_TASKS = (
    *_parts(("STS", "PI"), "spearman"),
    *_parts(("NLI", "SA"), "accuracy"),
    *_parts(("TI", "IA"), "roc_auc"),
    *_parts(("IC", "ICX"), "accuracy"),
)
WORD_TASKS = (*_parts(("NE1", "NE2"), "macro_f1"),)
ENCODECHKA_MEANS: Rows = {"Mean S": SENTENCE_TASKS, "Mean S+W": SENTENCE_TASKS + WORD_TASKS}
CARD_ENCODECHKA: Rows = {**ENCODECHKA_MEANS, **{part[0]: (part,) for part in SENTENCE_TASKS + WORD_TASKS}}

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
GROUPS: Rows = {
    "Classification": _parts(CLASSIFICATION, "accuracy"),
    "Reranking": [("MIRACLReranking", ("ndcg_at_10",)), ("RuBQReranking", ("map_at_1000", "map"))],
    "MultilabelClassification": _parts(("CEDRClassification", "SensitiveTopicsClassification"), "accuracy"),
    "STS by Pearson": _parts(SIMILARITY, "cosine_pearson", "pearson"),
    "STS by Spearman": _parts(SIMILARITY, "cosine_spearman", "spearman"),
    "Retrieval by Recall@100": _parts(RETRIEVAL, "recall_at_100"),
    "Retrieval by nDCG@10": _parts(RETRIEVAL, "ndcg_at_10"),
    "PairClassification": _parts(("OpusparcusPC", "TERRa", "XNLI", "XNLIV2"), "max_ap", "ap"),
}
AVERAGED = tuple(name for name in GROUPS if name not in ("STS by Spearman", "Retrieval by nDCG@10"))
ALL = [part for name in AVERAGED for part in GROUPS[name]]
CARD_MTEB: Rows = {AVERAGE: ALL, WITHOUT: [part for part in ALL if part[0] not in DOMINANT], **GROUPS}


@dataclass(frozen=True)
class CardTable:
    """One of the card's score tables: the suite that its rows are measured on, and the tasks of each row."""

    caption: str
    suite: str
    rows: Rows

    def metric(self, row: str) -> str:
        """A row's metric in scores.csv."""
        return MEAN if len(self.rows[row]) > 1 else self.rows[row][0][1][0]


CARD_TABLES = {  # kind of the claims with the card's figures -> table
    "encodechka": CardTable("encodechka", "encodechka", CARD_ENCODECHKA),
    "mteb": CardTable("Russian MTEB, the card's 30 data sets", CARD_SUITE, CARD_MTEB),
}


def published_rows() -> list[dict[str, str]]:
    """The rows of published_scores.csv."""
    with PUBLISHED.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def published_figures(name: str) -> Figures:
    """All figures of a model, by current names of tasks and metrics."""
    figures = {}
    for row in published_rows():
        if row["model"].lower() == name.lower():
            task = RENAMED_TASKS.get(row["task"], row["task"])
            metric = "" if task in MEANS else RENAMED_METRICS.get(row["metric"], row["metric"])
            figures[row["suite"], task, metric] = (float(row["score"]), row["source"])
    return figures


def published_figure(figures: Figures, suite: str, task: str, metric: str) -> tuple[float, str] | None:
    """The figure, with its source, for a row of scores.csv.

    Means over tasks have no metric; only the first published suite's means are over the same tasks as ours.
    """
    is_mean = task in MEANS
    sources = PUBLISHED_SUITES.get(suite, ())[: 1 if is_mean else None]
    keys = ((source, task, "" if is_mean else metric) for source in sources)
    return next((figures[key] for key in keys if key in figures), None)


def calibrated_name(config: EvaluationConfig) -> str:
    """The published model to calibrate against; raises UserError unless there is exactly one model."""
    if config.chain or len(config.models) != 1:
        models = ", ".join([*config.chain, *config.models]) or "none"
        where, remedy = "config keys evaluation.chain and evaluation.models", "make calibrate MODEL=BAAI/bge-m3"
        raise UserError(f"calibration takes one model, not {models}", where=where, remedy=remedy)
    return published_name(config.published or config.models[0].partition("@")[0])


def published_name(wanted: str) -> str:
    """The published model called `wanted` in full, or by the part after the slash, as folders often are."""
    names = sorted({row["model"] for row in published_rows()})
    end = Path(wanted).name
    for name in names:
        if wanted.lower() == name.lower() or end.lower() == name.rpartition("/")[2].lower():
            return name
    remedy = f"set it to one of the published models: {', '.join(names)}"
    raise UserError(f"no published scores of {wanted}", where="config key evaluation.published", remedy=remedy)


def parts_of(row: Sequence[Part], find: Callable[[str, str], Found | None]) -> list[Found] | None:
    """What `find` returns for each (task, metric) of a row; None if it returns None for one of the tasks."""
    parts = []
    for task, metrics in row:
        found = next((part for metric in metrics if (part := find(task, metric)) is not None), None)
        if found is None:
            return None
        parts.append(found)
    return parts


def mean_of(row: Sequence[Part], score: Callable[[str, str], float | None]) -> float | None:
    """The mean of a row's scores, None if one is missing."""
    found = parts_of(row, score)
    return fmean(found) if found else None
