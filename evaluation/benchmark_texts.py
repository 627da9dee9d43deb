"""The stage `benchmarks`: texts to keep out of training, by task: the bundled samples and benchmarks' test texts."""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import polars as pl

from configs.schema.config import Config
from data.pairs.decontamination import BENCHMARK_FILE, CHECKED_FILE, SAMPLE_FILE
from evaluation.suites.encodechka.files import data_files
from evaluation.suites.sample_files import FOLDER, read_samples
from pipeline.core.artefact import StageFolder, write_json
from pipeline.core.errors import UserError, first_line

TEXT_COLUMNS = ("sentence1", "sentence2", "text", "text1", "text2", "sentences")


def _sample_texts(name: str) -> list[str]:
    """All texts of two or more words in a bundled file; single words are labels or too common to exclude."""
    values = (value for row in read_samples(name) for value in row.values())
    return [value for value in values if isinstance(value, str) and " " in value.strip()]


def build(config: Config, stage: StageFolder) -> dict[str, Any]:
    """Write the bundled samples' texts, the suites' test texts, and which of these aren't available and why."""
    samples = {file.stem: _sample_texts(file.stem) for file in sorted(FOLDER.glob("*.jsonl"))}
    tests, missing = dict[str, list[str]](), dict[str, str]()
    for suite in config.data.checked_suites:
        settings = config.evaluation.suite.get(suite)  # None: encodechka, which needs no entry there
        if settings is None or settings.kind == "encodechka":
            found = _encodechka_texts(config, missing)
        else:
            found = _mteb_texts(suite, config, missing, tests)
        tests |= {task: sorted(texts) for task, texts in found}
    for name, by_task in ((SAMPLE_FILE, samples), (BENCHMARK_FILE, tests)):
        rows = [(task, text) for task, texts in by_task.items() for text in texts]
        with stage.replacing(name) as path:
            pl.DataFrame(rows, schema={"task": pl.String, "text": pl.String}, orient="row").write_parquet(path)
    checked = {task: len(texts) for task, texts in tests.items()}
    write_json(stage.path / CHECKED_FILE, {"checked": checked, "not_checked": missing})
    counts = {"tasks": len(checked), "texts": sum(checked.values()), "not checked": len(missing)}
    return counts if config.data.checked_suites else {}


def _encodechka_texts(config: Config, missing: dict[str, str]) -> Iterator[tuple[str, set[str]]]:
    """(file, test texts) of encodechka, from the folder or cache that the stage `evaluate` reads."""
    from evaluation.suites.encodechka.tasks import scored_columns  # imports torch

    files = data_files(config)
    unreachable: str | None = None
    for name, columns in scored_columns().items():
        task = f"encodechka {Path(name).stem}"
        if unreachable:
            missing[task] = unreachable
            continue
        try:
            content = files(name)
        except UserError as error:
            missing[task] = f"{error.what} ({error.where})"
            if files.download and not (files.folder / name).is_file():
                unreachable = missing[task]
        else:
            if isinstance(content, dict):
                yield task, set(content[columns[0]])
            else:
                yield task, {row[column] for row in content for column in columns if row[column]}


def _mteb_texts(
    suite: str, config: Config, missing: dict[str, str], done: Collection[str]
) -> Iterator[tuple[str, set[str]]]:
    """(task, test texts) of an evaluation suite; if a task's data isn't available, the next one is tried.

    Once the Hub is unreachable, only tasks in the mirror are tried.
    """
    from datasets.exceptions import DatasetsError
    from huggingface_hub.utils import httpx  # whichever of the two clients is in use

    from evaluation.suites.mteb_tasks import hub_task, suite_tasks  # mteb takes seconds to import; most runs check none

    settings = config.evaluation.suite[suite]
    unreachable: str | None = None
    for name, special in suite_tasks(settings).items():
        if name in done:
            continue
        task = hub_task(name, settings, special, config.mirror)
        local = Path(task.metadata.dataset["path"]).is_dir()
        if unreachable and not local:
            missing[name] = unreachable
            continue
        try:
            task.load_data()
            yield name, set(task_texts(task))
        except (ConnectionError, TimeoutError, httpx.TransportError) as error:
            unreachable = missing[name] = f"the Hub can't be reached: {first_line(error)[:200]}"
        except OSError as error:  # affects this task only: no such repository, no access, no such file
            missing[name] = f"its data isn't available: {first_line(error)[:200]}"
        except (DatasetsError, ValueError, KeyError, TypeError, RuntimeError) as error:
            missing[name] = f"mteb can't read its data: {first_line(error)[:200]}"


def task_texts(task: Any) -> Iterator[str]:
    """Test texts of a loaded mteb task.

    For retrieval and reranking these are only the queries: training on MIRACL's and Mr. TyDi's passages is legitimate.
    A relevant (query, passage) pair is found by its query.
    """
    subsets = task.dataset if any(subset in task.dataset for subset in task.hf_subsets) else {"": task.dataset}
    for subset, splits in subsets.items():
        if subset and subset not in task.hf_subsets:
            continue
        for split in task.eval_splits:
            if split in splits:
                yield from _split_texts(splits[split])


def _split_texts(split: Any) -> Iterator[str]:
    if isinstance(split, dict):  # retrieval, reranking
        values = (query["text"] for query in split["queries"])
    else:
        values = (value for column in TEXT_COLUMNS if column in split.column_names for value in split[column])
    for value in values:
        yield from [value] if isinstance(value, str) else value
