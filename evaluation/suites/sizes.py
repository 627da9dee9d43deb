"""How much text a model reads for a suite, known without its data: from the statistics bundled with mteb."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from configs.schema.config import Config
from evaluation.results import HYBRID, VECTOR_MODES
from evaluation.suites.mteb_tasks import hub_task, suite_tasks
from evaluation.suites.sample_files import FOLDER, read_samples

CHARACTERS = 3.5  # per XLM-R token in encodechka's Russian texts; 3.4 in the bundled long documents
ENCODECHKA_SIZE = (42_278, 867_000)  # distinct texts of its sentence tasks, and their tokens when truncated to 128


@dataclass(frozen=True)
class SuiteSize:
    """What one model reads for a suite, at most: texts in two tasks or splits are counted twice but encoded once.

    All texts of a task are assumed to have their mean length.
    """

    texts: int
    tokens: float
    squares: float  # sum of the squared lengths in tokens
    unknown: tuple[str, ...] = ()  # tasks without statistics


def suite_size(name: str, config: Config, max_length: int) -> SuiteSize | None:
    """The size of a suite with texts of at most `max_length` tokens; None for held-out sets, which `data` builds."""
    suite = config.evaluation.suite[name]
    if suite.kind in ("retrieval", "vectors"):
        return None
    if suite.kind == "encodechka":
        texts, tokens = ENCODECHKA_SIZE
        return SuiteSize(texts, tokens, tokens**2 / texts)
    if suite.kind == "samples":
        texts_of = {text for file in FOLDER.glob("*.jsonl") for row in read_samples(file.stem) for text in row.values()}
        return _summed([(1, len(text)) for text in texts_of if isinstance(text, str)], max_length)
    found, unknown = list[tuple[int, float]](), list[str]()
    for task, special in suite_tasks(suite).items():
        if task not in config.evaluation.without and task in (config.evaluation.tasks or [task]):
            counted = list(_counted(hub_task(task, suite, special, None)))
            found += counted * sum(len(VECTOR_MODES) if mode == HYBRID else 1 for mode in suite.representations)
            unknown += [] if counted else [task]
    return _summed(found, max_length, tuple(unknown))


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
