"""The kill matrix, `make torture`: every stage of profile tiny interrupted at random moments, then run again.

A moment is a file operation of the stage, drawn from those of an undisturbed run, and a part of the time until the
next one. Half of the moments are weighted by the operations' time (most of them while the stage computes), half are not
(most of them while it writes an artefact).
"""

import argparse
import dataclasses
import math
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pipeline.core.artefact import write_json
from pipeline.core.console import console, show_table
from tests.reliability import tiny_chain
from tests.reliability.tiny_chain import STAGES, folder_of, made
from tests.support.runs import Ended

STATUS = {"SIGKILL": -9, "SIGTERM": 143, "SIGINT": 130}
TARGETS = {"SIGKILL": "self", "SIGTERM": "root", "SIGINT": "group"}
MOST_WEIGHT = 1.0  # seconds for which an operation counts: importing libraries takes longer than all the rest
LONGEST_WRITE = 0.5  # seconds after a file operation that may still be its writing
ATTEMPTS = 6  # to hit a moment: a signal may come just after the stage has ended


@dataclasses.dataclass(frozen=True)
class Case:
    """One interruption: of which process of which stage, and by what."""

    stage: str
    ranks: int
    signal: str
    target: str
    rank: str | None  # in which process the moment is counted
    number: int

    @property
    def under(self) -> list[str]:
        """The files that the stage writes: its folder and the cache next to the runs."""
        return [folder_of(self.stage), "runs/cache"]


@dataclasses.dataclass(frozen=True)
class Operation:
    """A file operation of an undisturbed run."""

    number: int
    of: int
    what: str
    gap: float  # seconds until the next one


@dataclasses.dataclass
class Row:
    """One case in `runs/torture.json`."""

    stage: str
    signal: str
    moment: str
    same_bytes: bool
    ranks: int
    target: str
    status: int
    said: list[str]
    problems: list[str]

    @property
    def passed(self) -> bool:
        return self.same_bytes and not self.problems


def cases(stages: list[str], kills: int, stops: int, pairs_of_ranks: bool) -> list[Case]:
    """Every stage as one process, and one side on two ranks: one of them killed, all, or only the command."""
    numbers = {"SIGKILL": kills, "SIGTERM": stops, "SIGINT": stops}
    found = [
        Case(stage, 1, name, TARGETS[name], None, number)
        for stage in stages
        for name, times in numbers.items()
        for number in range(times)
    ]
    if pairs_of_ranks and "symmetric" in stages:
        killed = [("self", "1"), ("self", "0"), ("all", "0"), ("root", "0")]
        found += [Case("symmetric", 2, "SIGKILL", *killed[number % 4], number) for number in range(kills)]
        found += [
            Case("symmetric", 2, name, TARGETS[name], "0", n) for name in ("SIGTERM", "SIGINT") for n in range(stops)
        ]
    return found


class Torture:
    """Undisturbed runs in `folder`, and trials next to them."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed = folder, seed
        signal.signal(signal.SIGINT, signal.default_int_handler)  # else a background job's children would ignore it
        self.places: dict[str, Path] = {}
        self.operations: dict[tuple[str, int, str | None], list[Operation]] = {}

    def prepare(self, chosen: list[Case]) -> list[str]:
        """Run the chain undisturbed, and record file operations; returns what differs between undisturbed runs."""
        self.places = tiny_chain.snapshots(self.folder / "places", sorted({case.stage for case in chosen}))
        differing = []
        for case in chosen:
            key = (case.stage, case.ranks, case.rank)
            if key in self.operations:
                continue
            place = self._copy(case, "recorded")
            record = self.folder / f"{case.stage}-{case.ranks}-{case.rank}.operations"
            wanted = {"under": case.under, "rank": case.rank, "record": str(record)}
            done = tiny_chain.run(place, case.stage, ranks=case.ranks, operations=wanted)
            assert done.status == 0, done.out + done.err
            if self._reference(case).exists():
                differing += tiny_chain.differences(place, self._reference(case), case.stage)
            else:
                shutil.copytree(place, self._reference(case))
            self.operations[key] = read_operations(record)
        return differing

    def _reference(self, case: Case) -> Path:
        """The undisturbed result: two ranks have their own, as they add in another order."""
        place = made(self.places[case.stage])
        return place if case.ranks == 1 else place.with_name(f"{case.stage}.{case.ranks}.made")

    def _copy(self, case: Case, name: str) -> Path:
        place = self.folder / "trials" / f"{case.stage}-{case.ranks}-{case.rank}-{case.signal}-{name}"
        shutil.rmtree(place, ignore_errors=True)
        return Path(shutil.copytree(self.places[case.stage], place))

    def run(self, case: Case) -> Row:
        """Interrupt, check what is left, run again, compare."""
        draw = random.Random(f"{self.seed} {case}")
        for _ in range(ATTEMPTS):
            operation, delay = moment(self.operations[case.stage, case.ranks, case.rank], draw, case.number % 2 == 1)
            place = self._copy(case, str(case.number))
            done = self._interrupted(case, place, operation, delay)
            if done.status != 0:
                break
        problems = self._seen_at_once(case, place, done)
        again = tiny_chain.run(place, case.stage, ranks=case.ranks)
        if again.status:
            problems.append(f"the second run ended with {again.status}: {' | '.join(again.errors[-3:])}")
        differing = tiny_chain.differences(place, self._reference(case), case.stage)
        problems += differing + [f"left over: {name}" for name in tiny_chain.leftovers(place)]
        if not problems:
            shutil.rmtree(place)
        same = not any(problem.startswith(("differs", "missing", "not complete", "half")) for problem in differing)
        when = f"operation {operation.number} of {operation.of} + {delay * 1000:.0f} ms: {operation.what}"
        return Row(case.stage, case.signal, when, same, case.ranks, case.target, done.status, done.errors, problems)

    def _interrupted(self, case: Case, place: Path, operation: Operation, delay: float) -> Ended:
        wanted = {"under": case.under, "rank": case.rank, "signal": case.signal, "target": case.target}
        wanted |= {"operation": operation.number, "delay": delay}
        return tiny_chain.run(place, case.stage, ranks=case.ranks, operations=wanted)

    def _seen_at_once(self, case: Case, place: Path, done: Ended) -> list[str]:
        before = STAGES[: STAGES.index(case.stage)]
        problems = list(tiny_chain.broken_promises(place, self._reference(case), before, finished=True))
        problems += tiny_chain.broken_promises(place, self._reference(case), [case.stage])
        if alive := tiny_chain.wait_for_descendants(place, 60):
            problems.append(f"still running after a minute: {len(alive)} processes")
        problems += [f"held: {name}" for name in tiny_chain.leftovers(place) if name.endswith(".lock")]
        rank_died = case.ranks > 1 and case.signal == "SIGKILL" and case.target == "self"
        if done.status != STATUS[case.signal] and not (rank_died and done.status > 0):
            problems.append(f"exit status {done.status}")
        lines = 1 if case.signal != "SIGKILL" else 0
        if not rank_died and len(done.errors) != lines:  # the launcher reports a rank that dies at length
            problems.append(f"printed {len(done.errors)} lines: {' | '.join(done.errors[:5])}")
        return problems


def moment(operations: list[Operation], draw: random.Random, in_writing: bool) -> tuple[Operation, float]:
    """A random operation, drawn by its time or uniformly, and the seconds to wait after it."""
    weights = [1.0 if in_writing else min(operation.gap, MOST_WEIGHT) for operation in operations]
    (operation,) = draw.choices(operations, weights)
    return operation, draw.random() * min(operation.gap, LONGEST_WRITE if in_writing else math.inf)


def read_operations(record: Path) -> list[Operation]:
    """The file operations that a run recorded."""
    lines = [line.split("\t") for line in record.read_text(encoding="utf-8").splitlines()]
    times = [float(line[0]) for line in lines]
    gaps = [after - before for before, after in zip(times, [*times[1:], times[-1]], strict=True)]
    names = [f"{event} {path[path.find('runs/') :]}" for _, event, path in lines]
    return [Operation(i + 1, len(lines), name, gap) for i, (name, gap) in enumerate(zip(names, gaps, strict=True))]


def torture(folder: Path, chosen: list[Case], *, seed: int, jobs: int) -> Iterator[Row]:
    """All cases, `jobs` at a time; raises AssertionError if undisturbed runs already differ."""
    trials = Torture(folder, seed)
    differing = trials.prepare(chosen)
    assert not differing, f"two undisturbed runs differ: {differing}"
    with ThreadPoolExecutor(jobs) as pool:
        for number, row in enumerate(pool.map(trials.run, chosen), 1):
            mark = "ok" if row.passed else f"FAILED: {'; '.join(row.problems)}"
            console.print(f"{number}/{len(chosen)} {row.stage} {row.signal} {row.target}, {row.moment}: {mark}")
            yield row


def summary(rows: list[Row]) -> list[list[Any]]:
    """Cases tried and failed by stage."""
    table = []
    for stage, ranks in dict.fromkeys((row.stage, row.ranks) for row in rows):
        mine = [row for row in rows if (row.stage, row.ranks) == (stage, ranks)]
        tried = [sum(row.signal == name for row in mine) for name in STATUS]
        failed = sum(not row.passed for row in mine)
        table.append([stage, ranks, *tried, sum(row.same_bytes for row in mine), failed])
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/torture.json"))
    parser.add_argument("--stages", nargs="+", default=STAGES, choices=STAGES)
    parser.add_argument("--kills", type=int, default=10, help="SIGKILLs a stage")
    parser.add_argument("--stops", type=int, default=2, help="SIGTERMs, and SIGINTs, a stage")
    parser.add_argument("--no-ranks", action="store_true", help="leave out the part on two ranks")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--jobs", type=int, default=min(os.cpu_count() or 1, 4), help="cases at a time")
    parser.add_argument("--folder", type=Path, help="where it works; trials that failed are left there")
    given = parser.parse_args()
    started = time.monotonic()
    folder = given.folder or Path(tempfile.mkdtemp(prefix="torture-"))
    chosen = cases(given.stages, given.kills, given.stops, not given.no_ranks)
    rows: list[Row] = []
    for row in torture(folder.resolve(), chosen, seed=given.seed, jobs=given.jobs):
        rows.append(row)
        write_json(given.out, [dataclasses.asdict(row) for row in rows])
    columns = ["stage", "ranks", *STATUS, "same bytes", "failed"]
    show_table(f"torture: {given.out}, {time.monotonic() - started:.0f} s", columns, summary(rows))
    if not all(row.passed for row in rows):
        print(f"failed trials are in {folder}", file=sys.stderr)
        sys.exit(1)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
