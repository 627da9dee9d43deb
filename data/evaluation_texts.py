"""The texts of evaluations: held-out sets and bundled samples, which are never trained on, and benchmarks."""

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq

from data.decontamination import TextIndex
from pipeline.config import Config
from pipeline.console import log
from pipeline.errors import UserError, first_line

BENCHMARKS = "decontamination/benchmarks.parquet"  # text and the task it belongs to
ENCODECHKA = {  # file -> columns with test texts; train files are no benchmark
    "stsb_dev.csv": ("sentence1", "sentence2"),
    "para_gold.csv": ("text_1", "text_2"),
    "xnli_ru.csv": ("sentence1", "sentence2"),
    "SentiRuEval2016_small_test.csv": ("text",),
    "toxic_test.csv": ("text",),
    "inappropriate_test.csv": ("text",),
    "intents_test.csv": ("text", "answer"),
    "factru.json": ("texts",),
    "rudrec.json": ("texts",),
}
TEXT_COLUMNS = ("sentence1", "sentence2", "text", "text1", "text2", "sentences")


def forbidden_texts(held_out: Path, names: list[str], samples: Path) -> TextIndex:
    """Anchors and positives of the held-out sets, and every text of the bundled evaluation samples."""
    named: dict[str, pl.Series] = {}
    for name in names:
        table = pq.read_table(held_out / f"{name}.parquet", columns=["anchor", "positive"])
        columns = [pl.Series(pl.from_arrow(table[column])) for column in ("anchor", "positive")]
        named[f"held out: {name}"] = pl.concat(columns)
    for file in sorted(samples.glob("*.jsonl")):
        lines = file.read_text(encoding="utf-8").splitlines()
        texts = [text for line in lines if line.strip() for text in _texts(json.loads(line))]
        named[f"evaluation sample: {file.stem}"] = pl.Series(texts, dtype=pl.String)
    return TextIndex.of(named)


def _texts(content: Any) -> Iterator[str]:
    """All texts of two words or more inside JSON content; single words are labels or too common to forbid."""
    if isinstance(content, str):
        if " " in content.strip():
            yield content
    elif isinstance(content, dict | list):
        for value in content.values() if isinstance(content, dict) else content:
            yield from _texts(value)


def write_benchmarks(config: Config, folder: Path) -> dict[str, Any]:
    """Write the test texts of the configured suites below `folder`.

    Returns:
        `checked`: task -> texts; `not_checked`: task -> why its data can't be had here.
    """
    checked: dict[str, int] = {}
    missing: dict[str, str] = {}
    frames = []
    for task, texts in _benchmark_texts(config, missing):
        frame = pl.DataFrame({"task": task, "text": pl.Series(sorted(texts), dtype=pl.String)})
        checked[task] = len(frame)
        frames.append(frame)
    place = folder / BENCHMARKS
    place.parent.mkdir(parents=True)
    schema = {"task": pl.String, "text": pl.String}
    (pl.concat(frames) if frames else pl.DataFrame(schema=schema)).write_parquet(place)
    if missing:
        log.warning("decontamination: %d evaluations not checked: %s", len(missing), ", ".join(missing))
    return {"checked": checked, "not_checked": missing}


def read_benchmarks(stage: Path) -> dict[str, pl.Series]:
    """What `write_benchmarks` wrote, by the name that the ledger gives to a find."""
    frame = pl.read_parquet(stage / BENCHMARKS)
    parts = frame.partition_by("task", as_dict=True, maintain_order=True)
    return {f"evaluation: {task}": part["text"] for (task,), part in parts.items()}


def _benchmark_texts(config: Config, missing: dict[str, str]) -> Iterator[tuple[str, set[str]]]:
    done: set[str] = set()
    for suite in config.data.decontamination.suites:
        if suite == "encodechka":
            yield from _encodechka_texts(encodechka_folder(config), missing)
            continue
        for task, texts in _mteb_texts(suite, config, missing, done):
            done.add(task)
            yield task, texts


def encodechka_folder(config: Config) -> str | None:
    """Where encodechka's data files are, as far as configured."""
    return config.evaluation.encodechka or os.environ.get("ENCODECHKA_DATA_PATH")


def _encodechka_texts(folder: str | None, missing: dict[str, str]) -> Iterator[tuple[str, set[str]]]:
    if folder is None:
        missing["encodechka"] = "evaluation.encodechka names no folder of its data files"
        return
    for name, columns in ENCODECHKA.items():
        path = Path(folder) / name
        if not path.is_file():
            missing[f"encodechka {path.stem}"] = f"no file {path}"
        elif path.suffix == ".json":
            content = json.loads(path.read_text(encoding="utf-8"))
            yield f"encodechka {path.stem}", set(content[columns[0]])
        else:
            with path.open(encoding="utf-8", newline="") as file:
                rows = list(csv.DictReader(file))
            yield f"encodechka {path.stem}", {row[column] for row in rows for column in columns if row.get(column)}


def _mteb_texts(suite: str, config: Config, missing: dict[str, str], done: set[str]) -> Iterator[tuple[str, set[str]]]:
    """(task, test texts) of a suite of evaluation; where one task's data can't be had, the next is tried."""
    from evaluation.mteb_tasks import hub_task, suite_tasks

    if suite not in config.evaluation.suite:
        raise UserError(
            f"there is no suite {suite}",
            where="config key data.decontamination.suites",
            remedy="choose one of " + ", ".join(sorted(config.evaluation.suite)),
        )
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
        except (ConnectionError, OSError) as error:
            unreachable = missing[name] = f"its data can't be had: {_first_line(error)}"
        except (ValueError, KeyError, TypeError, RuntimeError) as error:
            missing[name] = f"mteb can't read its data: {_first_line(error)}"


def _first_line(error: BaseException) -> str:
    return first_line(error)[:200]


def task_texts(task: Any) -> Iterator[str]:
    """Test texts of a loaded mteb task.

    Of a retrieval or reranking task these are the queries, never the passages: MIRACL's and Mr. TyDi's passages are
    trained on by right. A relevant (query, passage) pair is found through its query.
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
        for query in split["queries"]:
            text = query["text"]
            yield from [text] if isinstance(text, str) else text
        return
    for column in TEXT_COLUMNS:
        if column in split.column_names:
            for value in split[column]:
                yield from [value] if isinstance(value, str) else value
