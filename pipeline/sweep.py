"""What a sweep leaves: one line a job, one table, and the best job as overrides."""

import csv
import json
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from pipeline.artefact import read_manifest, write_json
from pipeline.config import Config
from pipeline.console import log, show_table
from pipeline.errors import UserError

RESULT = "result.json"


def record_job(config: Config, error: UserError | None = None) -> None:
    """In a sweep, leave this job's overrides and objective in its folder; does nothing outside of one."""
    hydra = HydraConfig.get()
    if hydra.mode != RunMode.MULTIRUN:
        return
    stage, _, metric = config.objective.partition(".")
    manifest = read_manifest(config.folder(stage))
    score = manifest.metrics.get(metric) if manifest and not error else None
    swept = set(hydra.sweeper.params or ()) if "params" in hydra.sweeper else set()
    chosen = [item for item in hydra.overrides.task if item.split("=")[0] in swept] or list(hydra.overrides.task)
    result = {"job": hydra.job.num, "run": config.run, "overrides": chosen, "objective": config.objective}
    write_json(Path(hydra.runtime.output_dir) / RESULT, result | {"score": score, "error": error and error.line})


class SweepTable(Callback):
    """Hydra callback: after the last job, gather the results of all, also of those that failed."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        results = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob(f"*/{RESULT}")]
        if not results:
            return
        results.sort(key=lambda result: (result["score"] is None, -(result["score"] or 0.0), result["job"]))
        rows = [[" ".join(r["overrides"]), r["run"], r["score"], r["error"] or ""] for r in results]
        columns = ["overrides", "run", results[0]["objective"], "error"]
        with (folder / "sweep.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([columns, *rows])
        show_table(f"sweep: {folder}", columns, rows)
        if results[0]["score"] is not None:
            log.info("best: %s", " ".join(results[0]["overrides"]))
