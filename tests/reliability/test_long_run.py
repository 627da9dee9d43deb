"""Two thousand steps: memory, open files, checkpoints and logs stay bounded. About two minutes on one core."""

import logging.handlers
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml

from tests.support.planned_sets import prepared_run, rows
from tests.support.training_process import start

STEPS = 2000
SIDE = {"max_steps": STEPS, "batch_size": 8, "checkpoint_steps": 50, "logging_steps": 10, "epochs": 1.0}
GROWTH = 8000  # bytes per step; keeping one activation of a batch would add 20,000 or more


@pytest.mark.slow
def test_memory_files_and_checkpoints_stay_bounded_over_2000_steps(tmp_path: Path) -> None:
    prepared_run(tmp_path, {"symmetric/pairs": rows(400, seed=1), "symmetric/scored": rows(100, seed=2, scored=True)})
    process = start(tmp_path, 1, **SIDE)
    watched = psutil.Process(process.pid)
    stage = tmp_path / "one/symmetric"
    seen: list[tuple[int, int, int]] = []  # step, bytes, open files
    checkpoints = 0
    while process.poll() is None:
        try:
            lines = (stage / "metrics.jsonl").read_text(encoding="utf-8").count("\n")
            seen.append((10 * lines, watched.memory_info().rss, watched.num_fds()))
        except (FileNotFoundError, psutil.NoSuchProcess):
            pass
        checkpoints = max(checkpoints, len(list(stage.glob("checkpoints/checkpoint-*"))))
        time.sleep(0.1)
    assert process.returncode == 0, (tmp_path / "log.txt").read_text()
    steps, memory, files = np.array([each for each in seen if 500 <= each[0] < STEPS]).T
    assert len(np.unique(steps)) >= 20
    growth = np.polyfit(steps, memory, 1)[0]
    assert growth < GROWTH, f"{growth:.0f} bytes a step"
    assert files.max() - files.min() <= 8 and abs(np.polyfit(steps, files, 1)[0]) < 1e-3
    assert 2 <= checkpoints <= 4  # two are kept, one is being written, one is being removed
    assert not (stage / "checkpoints").exists()
    lines = (stage / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == STEPS / 10 and max(map(len, lines)) < 400  # grows only with the logged steps


def test_the_configured_log_is_bounded(repository: Path) -> None:
    text = (repository / "configs/hydra/job_logging/pipeline.yaml").read_text(encoding="utf-8")
    file = yaml.safe_load(text)["handlers"]["file"]
    assert file["class"] == f"logging.handlers.{logging.handlers.RotatingFileHandler.__name__}"
    assert file["maxBytes"] * (file["backupCount"] + 1) <= 50e6
