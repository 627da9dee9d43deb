"""Artefact folders: manifest, fingerprint, and writing that appears whole or not at all."""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.secrets import redacted

MANIFEST = "manifest.json"
PARTIAL = ".partial"


@dataclasses.dataclass
class Manifest:
    """What `manifest.json` says about an artefact folder."""

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
    error: str | None = None

    def write(self, folder: Path) -> None:
        content = dataclasses.asdict(self)
        spoken = {name: redacted(content[name]) for name in ("config", "metrics", "error")}
        write_json(folder / MANIFEST, content | spoken)


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of `folder`, or None where there is none that can be read."""
    try:
        return Manifest(**json.loads((folder / MANIFEST).read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError):  # ValueError: neither UTF-8 nor JSON
        return None


def is_complete(folder: Path) -> bool:
    """Whether the folder's manifest says that its artefact was made to the end."""
    manifest = read_manifest(folder)
    return manifest is not None and manifest.status == "complete"


def is_whole(folder: Path, outputs: dict[str, dict[str, Any]]) -> bool:
    """Whether every recorded output stands at its recorded size (contents are not read again)."""
    try:
        return all((folder / path).stat().st_size == entry["bytes"] for path, entry in outputs.items())
    except OSError:
        return False


def changed_file(folder: Path, outputs: dict[str, dict[str, Any]], most_bytes: int | None = None) -> str | None:
    """The first recorded output that is gone or holds other bytes than when it was recorded, or None.

    Files of more than `most_bytes` are compared by their size alone.
    """
    for path, entry in outputs.items():
        if not is_whole(folder, {path: entry}):
            return path
        if (most_bytes is None or entry["bytes"] <= most_bytes) and file_sha256(folder / path) != entry["sha256"]:
            return path
    return None


def fingerprint(stage: str, version: int, settings: Any, inputs: dict[str, str]) -> str:
    """A sha256 over everything that changes a stage's result."""
    content = {"stage": stage, "version": version, "settings": result_settings(settings), "inputs": inputs}
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def result_settings(value: Any) -> Any:
    """Plain values of a config, without the fields marked `metadata={"result": False}`."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kept = [field for field in dataclasses.fields(value) if field.metadata.get("result", True)]
        return {field.name: result_settings(getattr(value, field.name)) for field in kept}
    if isinstance(value, dict):
        return {str(key): result_settings(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [result_settings(item) for item in value]
    return value


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe_outputs(folder: Path, paths: list[Path]) -> dict[str, dict[str, Any]]:
    """Bytes and sha256 of files under `folder`, by relative path."""
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
        for path in paths
    }


def name_problem(name: str) -> str | None:
    """What is wrong with a name that becomes a file or folder: it must stay where it is put."""
    if name in ("", "..") or Path(name).name != name or "\0" in name:
        return f"{name!r} must be a plain name, as of a file or folder"
    return None


def files_under(folder: Path) -> list[Path]:
    """All files below `folder` in a fixed order."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def remove(path: Path) -> None:
    """Remove a file or folder if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A temporary path for a file or folder that takes `target`'s place when the block ends without an error."""
    temporary = target.with_name(target.name + PARTIAL)
    target.parent.mkdir(parents=True, exist_ok=True)
    remove(temporary)
    try:
        yield temporary
        for path in files_under(temporary) if temporary.is_dir() else [temporary]:
            synchronise(path)
        is_folder = target.is_dir()  # which can't be renamed over, and is not removed in one step
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


def retired(target: Path) -> Path:
    """Where a folder goes that another one replaces, to be removed."""
    return target.with_name(f"{target.name}.old{PARTIAL}")


def synchronise(path: Path) -> None:
    """Force a file's or folder's contents to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically, in a form that people can read."""
    with replacing(path) as temporary:
        text = json.dumps(content, ensure_ascii=False, indent=2, sort_keys=False, default=str)
        temporary.write_text(text + "\n", encoding="utf-8")
