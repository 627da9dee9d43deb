"""How much text a model reads for a suite: mteb's from the statistics bundled with it, without its data."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from configs.schema.config import Config
from data.artefact import held_out_file, read_held_out_set
from evaluation.results import HYBRID, VECTOR_MODES
from evaluation.suites.mteb_tasks import hub_task, suite_tasks
from evaluation.suites.sample_files import FOLDER, read_samples
from evaluation.suites.vectors import STS

CHARACTERS = 3.5  # per XLM-R token in encodechka's Russian texts; 3.4 in the bundled long documents
ENCODECHKA_SIZE = (42_278, 867_000)  # distinct texts of its sentence tasks, and their tokens when truncated to 128


@dataclass(frozen=True)
class SuiteSize:
    """What one model reads for a suite, at most: texts in two tasks or splits are counted twice but encoded once.

    All texts of an mteb task are assumed to have their mean length.
    """

    texts: int
    tokens: float
    squares: float  # sum of the squared lengths in tokens
    unknown: tuple[str, ...] = ()  # tasks without statistics


def suite_size(name: str, config: Config, max_length: int) -> SuiteSize | None:
    """The size of a suite with texts of at most `max_length` tokens; None if it has held-out sets not yet built."""
    suite, data = config.evaluation.suite[name], config.folder("data")
    if suite.kind in ("retrieval", "vectors"):
        if not all(held_out_file(data, own).is_file() for own in suite.sets.values()):
            return None
        sets = [read_held_out_set(data, own, "asymmetric") for own in suite.sets.values()]
        texts_of = {text for pairs in sets for text in (*pairs.anchors, *pairs.positives)}
        return _summed(_alone(texts_of | (_samples(STS) if suite.kind == "vectors" else set())), max_length)
    if suite.kind == "encodechka":
        texts, tokens = ENCODECHKA_SIZE
        return SuiteSize(texts, tokens, tokens**2 / texts)
    if suite.kind == "samples":
        return _summed(_alone(_samples(*(file.stem for file in FOLDER.glob("*.jsonl")))), max_length)
    found, unknown = list[tuple[int, float]](), list[str]()
    for task, special in suite_tasks(suite).items():
        if task not in config.evaluation.without and task in (config.evaluation.tasks or [task]):
            counted = list(_counted(hub_task(task, suite, special, None)))
            found += counted * sum(len(VECTOR_MODES) if mode == HYBRID else 1 for mode in suite.representations)
            unknown += [] if counted else [task]
    return _summed(found, max_length, tuple(unknown))


def _samples(*names: str) -> set[str]:
    """The texts of bundled samples."""
    return {text for name in names for row in read_samples(name) for text in row.values() if isinstance(text, str)}


def _alone(texts: Iterable[str]) -> list[tuple[int, float]]:
    """Each text as a kind of its own, with its number of characters."""
    return [(1, len(text)) for text in texts]


def _counted(task: Any) -> Iterator[tuple[int, float]]:
    """(texts, mean characters) of each kind of a task's test texts."""
    for split in task.eval_splits:
        whole = (task.metadata.descriptive_stats or {}).get(split) or {}
        subsets = whole.get("hf_subset_descriptive_stats")
        for part in [subsets[subset] for subset in task.hf_subsets if subset in subsets] if subsets else [whole]:
            for kind in part.values():
                if isinstance(kind, dict) and "average_text_length" in kind:
                    yield kind["unique_texts"], kind["average_text_length"]


def _summed(counted: list[tuple[int, float]], max_length: int, unknown: tuple[str, ...] = ()) -> SuiteSize:
    lengths = [(count, min(characters / CHARACTERS + 2, max_length)) for count, characters in counted]
    tokens, squares = (sum(count * length**power for count, length in lengths) for power in (1, 2))
    return SuiteSize(sum(count for count, _ in lengths), tokens, squares, unknown)
