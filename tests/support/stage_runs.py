"""Running a stage's own `main` in this process on a copy of a finished chain."""

import contextlib
import importlib
import io
import logging
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import copy_of_runs

RUN = "tiny"


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def said(self) -> list[str]:
        """The lines on stderr."""
        return [line for line in self.err.splitlines() if line.strip()]


def copied(chain: Path, runs: Path) -> Path:
    """A copy of a finished run with its base below `runs`, by hard links; returns the run's folder."""
    for part in (RUN, "bases"):
        copy_of_runs(chain / part, runs / part)
    return runs / RUN


def put(path: Path, content: bytes | str) -> None:
    """Write a file that takes the place of a hard link: the chain it was copied from stays as it is."""
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def run_main(module: str, *overrides: str) -> Ended:
    """`python -m module overrides`, in this process."""
    out, err = io.StringIO(), io.StringIO()
    with _as_command(module, overrides), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            importlib.import_module(module).main()
            status = 0
        except SystemExit as left:
            status = left.code if isinstance(left.code, int) else int(left.code is not None)
    return Ended(status, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def _as_command(module: str, overrides: tuple[str, ...]) -> Iterator[None]:
    """What a command changes in its process is as it was afterwards: arguments, environment, signals, logging."""
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
    """Take a stage's artefact out of a copied run."""
    shutil.rmtree(folder, ignore_errors=True)
