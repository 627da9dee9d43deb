"""Profile tiny stage by stage as commands in separate folders, and what must hold for the artefacts they leave."""

import csv
import fcntl
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import psutil

from pipeline.core.artefact import PARTIAL, file_sha256, files_under, is_whole, read_manifest
from tests.support import runs
from tests.support.runs import REPOSITORY, Ended, finish

STAGES = [
    "benchmarks",
    "data",
    "base",
    "init",
    "symmetric",
    "asymmetric",
    "joint",
    "merge",
    "heads",
    "evaluate",
    "report",
]
MEASURED = {"seconds", "tokens_per_second"}  # differ from run to run


def folder_of(stage: str) -> str:
    """Where a stage's artefact is below a folder in which commands run."""
    return "runs/bases/tiny" if stage == "base" else f"runs/tiny/{stage}"


def overrides_of(stages: Iterable[str], ranks: int = 1) -> list[str]:
    """The arguments of `python -m pipeline.run` that make stages."""
    launched = ["launch.config=cpu", f"launch.processes={ranks}"] if ranks > 1 else ["launch.config=none"]
    samples = REPOSITORY / "data" / "samples"
    return ["profile=tiny", f"mirror={samples}", f"stages=[{','.join(stages)}]", *launched]


def start(place: Path, overrides: list[str], operations: dict[str, Any] | None = None) -> subprocess.Popen[str]:
    """`python -m pipeline.run` in `place`, in its own process group; see interruption/sitecustomize.py."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    paths = [str(REPOSITORY)]
    if operations:
        environment |= {"FILE_OPERATIONS": json.dumps(operations)}
        paths.insert(0, str(Path(__file__).parent / "interruption"))
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    return runs.start(*overrides, cwd=place, env=environment)


def run(place: Path, stage: str, *, ranks: int = 1, operations: dict[str, Any] | None = None) -> Ended:
    """Make one stage in `place`."""
    place.mkdir(parents=True, exist_ok=True)
    return finish(start(place, overrides_of([stage], ranks), operations))


def snapshots(folder: Path, stages: list[str] = STAGES) -> dict[str, Path]:
    """Run the chain undisturbed up to the last of `stages`; returns, by stage, a place that is ready for that stage.

    The place of a stage holds complete artefacts of the stages before it; what it makes is in `<stage>.made`.
    """
    places = {}
    current = folder / "start"
    current.mkdir(parents=True)
    for stage in STAGES[: max(STAGES.index(stage) for stage in stages) + 1]:
        places[stage] = folder / stage
        shutil.copytree(current, places[stage])
        done = run(current, stage)
        assert done.status == 0, done.out + done.err
        shutil.copytree(current, made(places[stage]))
    shutil.rmtree(current)
    return places


def made(place: Path) -> Path:
    """What an undisturbed run made in a place of `snapshots`."""
    return place.with_name(f"{place.name}.made")


def content(path: Path) -> Any:
    """What must be the same in two runs: the bytes, without measured times and rates; nothing of the report's page."""
    if path.name == "index.html":
        return None
    if path.name == "metrics.jsonl":
        return [_unmeasured(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    if path.name == "scores.csv":
        with path.open(encoding="utf-8", newline="") as file:
            return [_unmeasured(row) for row in csv.DictReader(file)]
    if path.parent.name == "units":
        return _unmeasured(json.loads(path.read_text(encoding="utf-8")))
    return file_sha256(path)


def _unmeasured(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _unmeasured(item) for key, item in value.items() if key not in MEASURED}
    return value


def outputs(place: Path, stage: str) -> dict[str, Any]:
    """The stage's files by their paths below `place`, with their contents; the manifest by what it promises."""
    folder = place / folder_of(stage)
    found = {path.relative_to(place).as_posix(): content(path) for path in files_under(folder) if _is_output(path)}
    if stage == "report":
        card = "runs/tiny/heads/model/README.md"  # the report puts it next to the weights
        found[card] = file_sha256(place / card)
    return found


def _is_output(path: Path) -> bool:
    return path.name != "manifest.json"


def differences(place: Path, reference: Path, stage: str) -> list[str]:
    """How the finished stage in `place` differs from the undisturbed one, leftovers included."""
    mine, theirs = outputs(place, stage), outputs(reference, stage)
    found = [f"missing: {path}" for path in sorted(theirs.keys() - mine.keys())]
    found += [f"left over: {path}" for path in sorted(mine.keys() - theirs.keys())]
    found += [f"differs: {path}" for path in sorted(mine.keys() & theirs.keys()) if mine[path] != theirs[path]]
    found += [f"left over: {path}" for path in sorted(_all_files(place) - _all_files(reference)) if path not in mine]
    return found + list(broken_promises(place, reference, [stage], finished=True))


def _all_files(place: Path) -> set[str]:
    names = {path.relative_to(place).as_posix() for path in files_under(place / "runs")}
    return {name for name in names if "/logs/" not in name and "/.locks/" not in name}


def broken_promises(place: Path, reference: Path, stages: list[str], *, finished: bool = False) -> Iterator[str]:
    """What must not be seen at any moment: a complete manifest with other files, or half a file under its own name."""
    for stage in stages:
        folder = place / folder_of(stage)
        manifest = read_manifest(folder)
        if manifest and manifest.status == "complete":
            if not is_whole(folder, manifest.outputs):
                yield f"complete, but not whole: {stage}"
            for path, entry in manifest.outputs.items():
                if (folder / path).is_file() and file_sha256(folder / path) != entry["sha256"]:
                    yield f"complete, but changed: {stage}/{path}"
        elif finished:
            yield f"not complete: {stage}"
        yield from half_files(place, reference, stage)


def half_files(place: Path, reference: Path, stage: str) -> Iterator[str]:
    """Files of a stage that have their final names but other contents than in the undisturbed run."""
    for path in files_under(reference / folder_of(stage)):
        mine = place / path.relative_to(reference)
        if not _is_output(path) or path.name == "metrics.jsonl" or not mine.is_file():
            continue  # metrics.jsonl grows line by line while its stage is running
        try:
            there = content(mine)
            unfinished = path.parent.name == "units" and there["fingerprint"] is None  # the record says so itself
            if there != content(path) and not unfinished:
                yield f"half a file: {path.relative_to(reference)}"
        except (ValueError, KeyError) as error:
            yield f"half a file: {path.relative_to(reference)}: {error}"


def leftovers(place: Path) -> list[str]:
    """Temporary names below `place`, and locks that are held."""
    found = [path for path in place.rglob("*") if path.name.endswith((PARTIAL, ".previous"))]
    for lock in place.rglob("*.lock"):
        with lock.open("rb") as file:  # as filelock does it, but on a read-only disk too
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                found.append(lock)
    return [path.relative_to(place).as_posix() for path in found]


def wait_for_descendants(place: Path, seconds: float) -> list[int]:
    """Wait until no process runs in `place` any longer; returns those that are still there."""
    until = time.monotonic() + seconds
    while (alive := _running_in(place)) and time.monotonic() < until:
        time.sleep(0.05)
    return alive


def _running_in(place: Path) -> list[int]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and Path(process.cwd()) == place:
                found.append(process.pid)
        except (psutil.Error, OSError):
            continue
    return found
