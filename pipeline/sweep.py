"""A sweep's results: one file per job, one table, and the overrides of the best job.

Jobs may run one after another in this process or in parallel on a cluster (hydra/launcher=submitit_slurm), so they
exchange results through files.
"""

import csv
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

from filelock import FileLock, Timeout
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from configs.schema.config import Config
from pipeline.core.artefact import read_json, read_manifest, write_json
from pipeline.core.console import console, log, show_table
from pipeline.core.errors import UserError, redacted
from pipeline.stage import Stage, folder_and_manifest, locked

RESULT = "result.json"


class SweepTable(Callback):
    """Hydra callback: each job writes its result; after the last one, the table of all jobs, failed ones included."""

    lock: ClassVar[FileLock]  # of the sweep's folder, until this process ends; on the class, as jobs get copies of self

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        SweepTable.lock = FileLock(folder / ".lock")
        try:
            SweepTable.lock.acquire(timeout=0)
        except Timeout:
            raise UserError("another sweep of this name is running", where=str(folder), remedy="wait for it") from None
        for path in folder.glob(f"*/{RESULT}"):
            path.unlink()  # from an earlier sweep of this name, perhaps with other jobs

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Raise UserError if an earlier job has this run: its artefacts would be replaced."""
        earlier = Path(config.hydra.sweep.dir).glob(f"*/{RESULT}") if config.hydra.mode == RunMode.MULTIRUN else []
        if any(result["run"] == config.run and not result["error"] for result in map(read_json, earlier)):
            remedy = "name runs by what is swept: 'run=${profile}-${swept:}'"
            raise UserError(f"two jobs of this sweep have the run {config.run}", where="config key run", remedy=remedy)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Write the job's overrides, its objective from a stage's manifest, and its error."""
        if config.hydra.mode != RunMode.MULTIRUN or job_return.status != JobStatus.COMPLETED:
            return
        stage, _, metric = config.objective.partition(".")
        error = job_return.return_value
        manifest = None if error else read_manifest(Path(config.runs) / config.run / stage)
        value = manifest.metrics.get(metric) if manifest else None
        score = value if isinstance(value, int | float) else None  # merge.method is a word
        outcome = {"overrides": redacted(list(config.hydra.overrides.task)), "score": score, "error": error}
        result = {"job": config.hydra.job.num, "run": config.run, **outcome}
        write_json(Path(config.hydra.runtime.output_dir) / RESULT, result)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        results = [read_json(path) for path in folder.glob(f"*/{RESULT}")]
        results.sort(key=lambda result: (result["score"] is None, -(result["score"] or 0.0), result["job"]))
        shared = set.intersection(*(set(r["overrides"]) for r in results)) if len(results) > 1 else set()
        rows = []
        for r in results:
            swept = " ".join(item for item in r["overrides"] if item not in shared)
            rows.append([swept, r["run"], r["score"], r["error"] or ""])
        columns = ["overrides", "run", config.objective, "error"]
        with (folder / "sweep.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([columns, *rows])
        show_table(f"sweep: {folder}", columns, rows)
        if rows and rows[0][2] is not None:
            equal = sum(score == rows[0][2] for _, _, score, _ in rows) - 1
            console.print(f"best: {rows[0][0]}" + (f" (equal: {equal} more)" if equal else ""))
        elif any(not result["error"] for result in results):
            what = "no job has a value of %s: objective=<stage>.<one of the metrics of its manifest>"
            log.warning(what, config.objective)
        if failed := [result["error"] for result in results if result["error"]]:
            sys.stdout.flush()
            print("\n".join(failed), file=sys.stderr, flush=True)
            sys.exit(2)


def sweep_lock(stage: Stage, config: Config) -> AbstractContextManager[None]:
    """A lock for sweep jobs that need the same artefact: the first job makes it, the others then borrow it."""
    if not config.borrow:
        return nullcontext()
    folder, _ = folder_and_manifest(stage, config)
    return locked(Path(config.runs) / folder.fingerprint[:32], wait=True)
