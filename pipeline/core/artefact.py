"""Artefact folders: manifests, fingerprints, atomic writes, and a stage's units."""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cache, lru_cache, wraps
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pipeline.core.errors import redacted

MANIFEST = "manifest.json"
PARTIAL = ".partial"


@dataclasses.dataclass
class Manifest:
    """The content of an artefact folder's `manifest.json`."""

    stage: str
    status: str  # running, complete or failed
    fingerprint: str
    inputs: dict[str, str]  # input name -> fingerprint
    config: dict[str, Any]
    outputs: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)  # path -> bytes, sha256
    metrics: dict[str, Any] = dataclasses.field(default_factory=dict)
    environment: dict[str, Any] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    peak_rss_bytes: int = 0
    peak_gpu_bytes: int | None = None  # of rank 0's fullest GPU; None: on CPU
    error: str | None = None
    version: int = 0  # of the stage

    def write(self, folder: Path) -> None:
        content = dataclasses.asdict(self)
        shown = {name: redacted(content[name]) for name in ("config", "metrics", "error")}
        write_json(folder / MANIFEST, content | shown)


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of `folder`, or None if there is none that can be read. It is shared: don't change it."""
    path = folder / MANIFEST
    try:
        stat = path.stat()
        return _manifest(path, stat.st_ino, stat.st_mtime_ns, stat.st_size)
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError):  # ValueError: not UTF-8 or not JSON
        return None


@lru_cache(maxsize=64)
def _manifest(path: Path, *state: int) -> Manifest:
    """Parsed once per state of the file, which is only ever replaced: a command reads the same manifests often."""
    return Manifest(**read_json(path))


def is_complete(folder: Path) -> bool:
    """Whether the folder's manifest says that its artefact is complete."""
    manifest = read_manifest(folder)
    return manifest is not None and manifest.status == "complete"


def is_whole(folder: Path, outputs: dict[str, dict[str, Any]]) -> bool:
    """Whether every recorded output exists at its recorded size (contents are not read again)."""
    try:
        return all((folder / path).stat().st_size == entry["bytes"] for path, entry in outputs.items())
    except OSError:
        return False


def changed_file(folder: Path, outputs: dict[str, dict[str, Any]], max_bytes: int | None = None) -> str | None:
    """The first recorded output that is missing or differs from its recorded sha256, or None.

    Files of more than `max_bytes` are compared by size only.
    """
    for path, entry in outputs.items():
        if not is_whole(folder, {path: entry}):
            return path
        if (max_bytes is None or entry["bytes"] <= max_bytes) and read_sha256(folder / path) != entry["sha256"]:
            return path
    return None


def json_sha256(content: Any) -> str:
    """The sha256 of JSON-serialisable content; names of files may be in any encoding."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def result_settings(value: Any, mark: str = "result") -> Any:
    """Plain values of a config, without fields whose metadata has the mark as False, or that equal their `unless`."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kept = [
            field
            for field in dataclasses.fields(value)
            if field.metadata.get(mark, True) and getattr(value, field.name) != field.metadata.get("unless", ...)
        ]
        return {field.name: result_settings(getattr(value, field.name), mark) for field in kept}
    if isinstance(value, dict):
        return {str(key): result_settings(item, mark) for key, item in value.items()}
    if isinstance(value, list):
        return [result_settings(item, mark) for item in value]
    return value


def read_once(digest: Callable[[Path], str]) -> Callable[[Path], str]:
    """`digest`, but within this process a file is read again only if its inode, size or modification time changed."""
    known = cache(lambda path, *state: digest(path))

    @wraps(digest)
    def digest_of(path: Path) -> str:
        stat = path.stat()
        return known(path, stat.st_ino, stat.st_mtime_ns, stat.st_size)

    return digest_of


def read_sha256(path: Path) -> str:
    """The sha256 of a file's present bytes, for verification."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@read_once
def file_sha256(path: Path) -> str:
    """The sha256 of a file, for fingerprints: a command needs that of the same gigabytes several times."""
    return read_sha256(path)


def describe_outputs(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and sha256 of the files below `folder` except its manifest, by relative path."""
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": read_sha256(path)}
        for path in files_under(folder)
        if path != folder / MANIFEST
    }


def files_under(folder: Path) -> list[Path]:
    """All files below `folder` in a fixed order."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def folder_state(folder: Path) -> list[list[str]]:
    """Path and sha256 of every file below `folder`, for a fingerprint."""
    return [[path.relative_to(folder).as_posix(), file_sha256(path)] for path in files_under(folder)]


def remove(path: Path) -> None:
    """Remove a file or folder if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A temporary path for a file or folder that replaces `target` when the block ends without an error.

    Its name is fixed, so that the next attempt removes what a killed one left; processes that share a target need a
    lock.
    """
    temporary = target.with_name(target.name + PARTIAL)
    target.parent.mkdir(parents=True, exist_ok=True)
    remove(temporary)
    try:
        yield temporary
        for path in files_under(temporary) if temporary.is_dir() else [temporary]:
            synchronise(path)
        is_folder = target.is_dir()  # which can't be overwritten by renaming or removed atomically
        if is_folder:
            remove(retired(target))
            target.rename(retired(target))
        os.replace(temporary, target)
        synchronise(target.parent)
        if is_folder:
            remove(retired(target))
    except BaseException:
        remove(temporary)
        raise


def link_tree(source: Path, target: Path, without: str = "") -> None:
    """Copy a folder without the files of a name, by hard links if the file system supports them."""

    def link(path: str, place: str) -> None:
        try:
            os.link(path, place)
        except OSError:
            shutil.copy2(path, place)

    shutil.copytree(source, target, copy_function=link, ignore=shutil.ignore_patterns(without))


def retired(target: Path) -> Path:
    """Where a replaced folder is moved before it is removed."""
    return target.with_name(f"{target.name}.old{PARTIAL}")


def synchronise(path: Path) -> None:
    """Flush a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json(path: Path) -> Any:
    """The content of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, content: Any) -> None:
    """Write readable JSON atomically."""
    with replacing(path) as temporary:
        text = json.dumps(content, ensure_ascii=False, indent=2, sort_keys=False, default=str)
        temporary.write_text(text + "\n", encoding="utf-8")


UNITS = "units"  # the folder of the units' records


def untracked(line: dict[str, Any]) -> None:
    """Drops a line where there is no tracker, or only another process has one."""


@dataclasses.dataclass
class StageFolder:
    """The folder that a stage's `build` writes to."""

    name: str
    path: Path
    fingerprint: str
    inputs: Mapping[str, Path]  # the folders of complete artefacts
    resuming: bool = False  # it holds files of an unfinished attempt with the same fingerprint
    track: Callable[[dict[str, Any]], None] = untracked  # sends a line of metrics.jsonl to the tracker
    records: set[Path] = dataclasses.field(default_factory=set)  # of the units that belong to this attempt

    def replacing(self, relative: str) -> AbstractContextManager[Path]:
        """A temporary path that becomes `<stage>/<relative>` when the block ends without an error."""
        return replacing(self.path / relative)

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder whose files move to the same relative paths of the stage when the block ends without an error.

        config.json is moved last: no library takes a folder without one for a model.
        """
        scratch = self.path / f"files{PARTIAL}"
        scratch.mkdir()
        try:
            yield scratch
            for path in sorted(files_under(scratch), key=lambda path: path == scratch / "config.json"):
                with self.replacing(path.relative_to(scratch).as_posix()) as temporary:
                    path.rename(temporary)
        finally:
            remove(scratch)

    @contextmanager
    def claim(self, unit: str, wait: bool = True) -> Iterator[bool]:
        """Lock a unit against other processes that make units of this stage; yields whether it is locked.

        The system releases the lock when this process ends. Without `wait`, a unit that another process holds is not
        locked.
        """
        place = self.path.parent / ".locks" / f"{self.path.name}--{unit.replace('/', '--')}.lock"
        lock = FileLock(place)
        with suppress(Timeout):
            lock.acquire(blocking=wait)
        try:
            yield lock.is_locked
        finally:
            lock.release()

    def unit(self, name: str, fingerprint: str, make: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
        """Make an independent part of the stage, or reuse it if it has the same fingerprint and unchanged files.

        `make` writes files below the folder it is given, at their relative paths in the stage, and returns a
        JSON-serialisable result, which this call returns now and whenever the unit is reused.
        """
        place = self.path / UNITS / f"{name.replace('/', '--')}.json"
        record = _read_record(place)
        if record["fingerprint"] == fingerprint and changed_file(self.path, record["outputs"]) is None:
            self.records.add(place)
            return record["result"]
        scratch = self.path / f".{place.stem}{PARTIAL}"
        remove(scratch)
        scratch.mkdir(parents=True)
        try:
            result = make(scratch)
            outputs = describe_outputs(scratch)
            # Not finished, but whenever this process is killed, the files that it owns or leaves behind are on record.
            write_json(place, {"fingerprint": None, "outputs": record["outputs"] | outputs, "result": {}})
            for relative in record["outputs"].keys() - outputs:
                remove(self.path / relative)
            for relative in outputs:
                with self.replacing(relative) as temporary:
                    shutil.move(scratch / relative, temporary)
        finally:
            remove(scratch)
        write_json(place, {"fingerprint": fingerprint, "outputs": outputs, "result": result})
        self.records.add(place)  # not before: a failed unit leaves nothing behind
        return result

    def forget_units(self) -> None:
        """Have every unit rebuilt; its files stay on record, to be removed if it is not made again."""
        for place in (self.path / UNITS).glob("*.json"):
            write_json(place, _read_record(place) | {"fingerprint": None})

    def remove_untouched_units(self) -> None:
        """Remove files and records of units from an earlier config."""
        places = set((self.path / UNITS).glob("*.json"))
        kept = {output for place in self.records for output in _read_record(place)["outputs"]}
        for place in places - self.records:
            for output in _read_record(place)["outputs"].keys() - kept:
                remove(self.path / output)
            place.unlink()


def _read_record(place: Path) -> dict[str, Any]:
    try:
        return read_json(place)
    except (OSError, json.JSONDecodeError):
        return {"fingerprint": None, "outputs": {}, "result": {}}
