"""Runs of the pipeline: commands that make them, in fresh processes or in this one; copies of finished ones."""

import contextlib
import csv
import importlib
import io
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
RUN = "tiny"
PATIENCE = 1800  # seconds until a command counts as hanging; the demo takes eleven minutes on two cores


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """The lines on stderr."""
        return [line for line in self.err.splitlines() if line.strip()]


def start(
    *overrides: str,
    module: str = "pipeline.run",
    code: str | None = None,
    cwd: Path = REPOSITORY,
    env: Mapping[str, str] | None = None,
) -> subprocess.Popen[str]:
    """`python -m module overrides`, or `python -c code overrides`, in its own process group, as in a terminal."""
    program = ["-c", code] if code else ["-m", module]
    return subprocess.Popen(
        [sys.executable, *program, *overrides],
        cwd=cwd,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> Ended:
    """Wait for a command; one that hangs is killed and fails."""
    try:
        out, err = process.communicate(timeout=PATIENCE)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return Ended(process.returncode, out, err)


def run_command(*overrides: str, module: str = "pipeline.run", env: Mapping[str, str] | None = None) -> Ended:
    """`python -m module overrides` to its end."""
    return finish(start(*overrides, module=module, env=env))


def make(*overrides: str, env: Mapping[str, str] | None = None) -> Ended:
    """`python -m pipeline.run overrides`, which must succeed."""
    ended = run_command(*overrides, env=env)
    assert ended.status == 0, ended.out[-3000:] + ended.err[-3000:]
    return ended


def run_main(*overrides: str, module: str = "pipeline.run", main: Callable[[], None] | None = None) -> Ended:
    """Like `run_command`, or another `main`, in this process: faster, as nothing is imported again."""
    out, err = io.StringIO(), io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    with _as_command(module, overrides), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            (main or importlib.import_module(module).main)()
            status = 0
        except SystemExit as left:
            status = left.code if isinstance(left.code, int) else int(left.code is not None)
    err.seek(0)
    return Ended(status, out.getvalue(), err.read())


@contextlib.contextmanager
def _as_command(module: str, overrides: tuple[str, ...]) -> Iterator[None]:
    """Restore what a command changes in its process: arguments, environment, signals, logging."""
    arguments, environment = sys.argv, dict(os.environ)
    on_signals = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    sys.argv = [module, *overrides]
    try:
        yield
    finally:
        sys.argv = arguments
        os.environ.clear()
        os.environ.update(environment)
        for number, handler in on_signals.items():
            signal.signal(number, handler)
        for each in set(root.handlers) - set(handlers):
            each.close()
        root.handlers, root.level = handlers, level


def remove_stage(folder: Path) -> None:
    """Remove a stage's artefact from a copied run."""
    shutil.rmtree(folder, ignore_errors=True)


def copy_of_runs(source: Path, target: Path) -> None:
    """A copy by hard links, without the locks: two copies would share them."""
    shutil.copytree(source, target, copy_function=os.link, ignore=shutil.ignore_patterns(".locks"))


def copied(chain: Path, runs: Path, name: str = RUN) -> Path:
    """A copy of the finished run and its base below `runs`, by hard links; returns the run's folder."""
    for part, target in ((RUN, name), ("bases", "bases")):
        if not (runs / target).exists():
            copy_of_runs(chain / part, runs / target)
    return runs / name


def put(path: Path, content: bytes | str) -> None:
    """Replace a hard link by a file, so that the chain it was copied from is unchanged."""
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a table that a stage left."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def read_metrics(stage: Path) -> list[dict[str, Any]]:
    """The lines that a training stage logged."""
    return [json.loads(line) for line in (stage / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def file_names(folder: Path) -> set[str]:
    """All files below the folder, by their paths in it."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
