"""Output for people: one console, plain logs, progress bars and tables; silent on ranks other than 0."""

import logging
import os
import time
import warnings
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

Item = TypeVar("Item")

LOGGED_EVERY = 60  # seconds

log = logging.getLogger("pipeline")


def is_main_process() -> bool:
    """Whether this process is rank 0 (or the only one); a cluster's RANK without LOCAL_RANK numbers machines."""
    return "LOCAL_RANK" not in os.environ or int(os.environ.get("RANK", "0")) == 0


# Without markup and emoji, so that overrides such as languages=[ru,en], paths and columns are shown as they are.
console = Console(markup=False, emoji=False, highlight=False, quiet=not is_main_process())
if not console.is_terminal:  # rich would assume 80 columns, too narrow for the closing tables in a log file
    console.width = 140


def progress(items: Collection[Item], what: str) -> Iterator[Item]:
    """Iterate over `items` with a progress bar on a terminal, else with log lines: at the start and each minute."""
    if not is_main_process():
        yield from items
    elif console.is_terminal:
        yield from track(items, description=what, console=console, transient=True)
    else:
        log.info("%s …", what)
        started = logged = time.monotonic()
        for done, item in enumerate(items, start=1):
            yield item
            now = time.monotonic()
            if now - logged >= LOGGED_EVERY and done < len(items):
                minutes = (now - started) / done * (len(items) - done) / 60
                logged = now
                log.info("%s: %d of %d, %.1f minutes to go", what, done, len(items), minutes)


def show_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table, or its title alone if it has no rows; floats get four decimals, None becomes a dash."""
    table = Table(box=box.SIMPLE_HEAD)
    for position, column in enumerate(columns):
        table.add_column(column, justify="left" if position == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(cell, row))
    console.print(title)  # not as the table's title, which would be wrapped at the table's width
    if table.row_count:
        console.print(table)


def cell(value: object) -> str:
    """A value as tables show it."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]], figures: Collection[int] = ()) -> str:
    """A Markdown table with the columns at `figures` aligned right; pipes in cells are escaped, line breaks blanks."""
    cells = [[" ".join(text.splitlines()).replace("|", "\\|") for text in row] for row in (columns, *rows)]
    head, *lines = [f"| {' | '.join(row)} |" for row in cells]
    rule = "".join("---:|" if place in figures else "---|" for place in range(len(columns)))
    return "\n".join([head, f"|{rule}", *lines])


LIBRARIES = ("datasets", "mteb", "sentence_transformers", "transformers")


@contextmanager
def quiet() -> Iterator[None]:
    """Only errors from the libraries' loggers, no warnings, and no progress bar for loading weights."""
    from transformers.utils import logging as transformers_logging

    loggers = [logging.getLogger(name) for name in LIBRARIES]
    levels = [logger.level for logger in loggers]
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if bars:
            transformers_logging.enable_progress_bar()
