"""The rows of the published card's two score tables, each as the mean of tasks' scores.

The card names neither its 30 data sets of Russian MTEB nor their metrics: both are inferred from its group means. For
STS and retrieval two readings stand here, of which the first of each goes into the averages.
"""

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import TypeVar

Part = tuple[str, tuple[str, ...]]  # a task, and the names of its metric, of which the first that is found counts
Rows = dict[str, Sequence[Part]]
Found = TypeVar("Found")

SUITE = "card_30"  # the suite of Russian MTEB that fits the card's table
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
ENCODECHKA: Rows = {**ENCODECHKA_MEANS, **{part[0]: (part,) for part in SENTENCE_TASKS + WORD_TASKS}}

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
MTEB: Rows = {AVERAGE: ALL, WITHOUT: [part for part in ALL if part[0] not in DOMINANT], **GROUPS}


def parts_of(row: Sequence[Part], find: Callable[[str, str], Found | None]) -> list[Found] | None:
    """What `find` gives for each (task, metric) of a row; None while it gives nothing for one of its tasks."""
    found = [next((f for metric in metrics if (f := find(task, metric)) is not None), None) for task, metrics in row]
    known = [part for part in found if part is not None]
    return known if len(known) == len(found) else None


def mean_of(row: Sequence[Part], score: Callable[[str, str], float | None]) -> float | None:
    """The mean of a row's scores, None while one is missing."""
    found = parts_of(row, score)
    return fmean(found) if found else None
