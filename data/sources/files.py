"""Where a source's rows are: files (a local path, the mirror, the Hub's cache), or a reader class."""

import fnmatch
import glob
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path, PurePath, PurePosixPath
from typing import IO, Protocol, cast

from configs.schema.data import HubFiles, SourceConfig, set_name
from pipeline.core.errors import UserError, redacted
from pipeline.core.hub import Revision, hub_errors, mirrored, readable_revision

WILD = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class SourceFile:
    """One local file; `member` is a pattern of names where the file is a tar archive."""

    path: Path
    name: str  # for messages: the path inside the data set
    member: str | None = None
    beginning: bool = False  # only the first rows are wanted: read in small blocks

    def open(self) -> IO[bytes]:
        """The file's bytes."""
        return self.path.open("rb")


@dataclass(frozen=True)
class HubFile(SourceFile):
    """One file on the Hub, read remotely; `path` is its path inside the data set."""

    hub: str = ""
    revision: str = ""

    def open(self) -> IO[bytes]:
        """The file's bytes, fetched on demand."""
        from huggingface_hub import HfFileSystem

        place = f"datasets/{self.hub}@{self.revision}/{self.path.as_posix()}"
        return cast(IO[bytes], HfFileSystem().open(place, "rb", block_size=2**18))


@dataclass(frozen=True)
class Located:
    """A source's files in order, and their revision (a Hub commit, or their origin)."""

    files: tuple[SourceFile, ...]
    revision: str


class NotSupplied(UserError):
    """The files of a set that users must obtain themselves are missing: the set is skipped without an error."""


def locate(key: str, source: SourceConfig, mirror: str | None, *, dev: bool = False) -> Located:
    """The source's files, downloaded if needed; `key` is the set's config key, such as data.sources.mine.

    Raises UserError, or NotSupplied for sets behind an agreement.
    """
    if source.path and not (dev and source.hub):
        setting, places = ("dev_files", source.dev_files) if dev else ("path", [source.path])
        files = [file for place in places for file in local_files(key, setting, place)]
        return Located(tuple(dict.fromkeys(files)), f"local {redacted(source.path)}")
    assert source.hub is not None
    first = HubFiles(source.hub, source.revision, source.dev_files if dev else source.files)
    parts = [first] if dev else [first, *source.also]
    if source.local_only and not mirrored(source.hub, mirror):
        remedy = f"put it into the mirror as {source.hub}, or set {key}.path"
        raise NotSupplied(f"{set_name(key)}: {source.access}; file not supplied", where=source.hub, remedy=remedy)
    located = [hub_files(key, part, mirror) for part in parts]
    revisions = dict.fromkeys(part.revision for part in located)
    return Located(tuple(file for part in located for file in part.files), ", ".join(revisions))


def local_files(key: str, setting: str, path: str) -> list[SourceFile]:
    """The file, or the folder's files, of this name, else those that the pattern matches; each once, also if linked.

    Raises UserError where there are none.
    """
    given = Path(path)
    if given.is_dir():
        inside = sorted(map(PurePath, glob.glob("**", root_dir=given, recursive=True)))  # rglob skips linked folders
        found = [(given / place, place.as_posix()) for place in inside if not is_hidden(place)]
    else:
        places = [path] if given.exists() else sorted(glob.glob(path, recursive=True))
        shared = os.path.commonpath(map(os.path.dirname, places)) if places else ""
        found = [(Path(place), os.path.relpath(place, shared)) for place in places]
    files = dict[Path, SourceFile]()
    for place, called in found:
        if place.is_file():
            files.setdefault(place.resolve(), SourceFile(place, called))
    if not files:
        raise UserError(f"{set_name(key)}: no such file", where=path, remedy=f"fix {key}.{setting}")
    return list(files.values())


def hub_files(key: str, part: HubFiles, mirror: str | None) -> Located:
    """The files in the mirror where there is one, else in the Hub's cache, downloaded where needed."""
    if mirror is None:
        return _from_hub(key, part)
    folder = mirrored(part.hub, mirror)
    if folder is None:
        where, remedy = f"{mirror}/{part.hub}", f"add the data set to the mirror, remove {key}, or unset mirror"
        raise UserError(f"{set_name(key)}: the mirror has no {part.hub}", where=where, remedy=remedy)
    inside = glob.glob("**", root_dir=folder, recursive=True, include_hidden=True)
    names = sorted(name for name in inside if (folder / name).is_file())
    chosen = matching(key, part.files, names, str(folder))
    files = tuple(SourceFile(folder / inside, inside, member) for inside, member in chosen)
    return Located(files, f"mirror of {part.revision}")


def is_hidden(path: PurePath) -> bool:
    """Whether the path is one of programs' own files, such as .ipynb_checkpoints/a.jsonl, ._a.jsonl, a.jsonl~."""
    inside = [part for part in path.parts if part not in (".", "..")]
    return any(part.startswith((".", "__MACOSX")) or part.endswith("~") for part in inside)


def is_chosen(name: str, pattern: str) -> bool:
    """Whether the pattern is the file's name, or matches it and the file is not hidden."""
    return name == pattern or (fnmatch.fnmatchcase(name, pattern) and not is_hidden(PurePosixPath(name)))


def matching(key: str, patterns: list[str], names: list[str], where: str) -> list[tuple[str, str | None]]:
    """(file, member pattern) for every pattern, without duplicates; raises UserError where one matches nothing."""
    chosen: list[tuple[str, str | None]] = []
    for pattern in patterns:
        outer, _, member = pattern.partition("::")
        matches = [outer] if outer in names else [candidate for candidate in names if is_chosen(candidate, outer)]
        if not matches:
            there = ", ".join(names[:8]) or "none"
            remedy = f"fix files or dev_files of {key}; files there: {there}"
            raise UserError(f"{set_name(key)}: no file {outer}", where=where, remedy=remedy)
        chosen += [(match, member or None) for match in matches]
    return list(dict.fromkeys(chosen))


def _from_hub(key: str, part: HubFiles) -> Located:
    from huggingface_hub import HfApi, hf_hub_download

    where = f"{part.hub} at {part.revision}"
    with hub_errors(set_name(key), where, key):
        revision = readable_revision(Revision("dataset", part.hub, part.revision))
        if any(WILD.search(pattern.partition("::")[0]) for pattern in part.files):
            names = HfApi().list_repo_files(part.hub, revision=revision, repo_type="dataset")
            chosen = matching(key, part.files, sorted(names), where)
        else:
            split = (pattern.partition("::") for pattern in part.files)
            chosen = [(outer, member or None) for outer, _, member in split]
        files, commits = [], set()
        for inside, member in chosen:
            place = hf_hub_download(part.hub, inside, repo_type="dataset", revision=revision)
            commits.add(Path(place).parts[-1 - len(Path(inside).parts)])  # .../snapshots/<commit>/<path inside>
            files.append(SourceFile(Path(place), inside, member))
    return Located(tuple(files), ", ".join(sorted(commits)))


class PairReader(Protocol):
    """A class whose instances yield pairs; `reader_options` are its keyword arguments."""

    revision: str

    def pairs(self) -> Iterator[tuple[str, str]]:
        """(anchor, positive) in a fixed order."""
        ...


def open_reader(key: str, source: SourceConfig) -> PairReader:
    """An instance of the source's reader class; raises UserError where class or package is missing."""
    assert source.reader is not None
    module, _, class_name = source.reader.rpartition(".")
    try:
        reader = getattr(import_module(module), class_name)
        if not (isinstance(reader, type) and hasattr(reader, "pairs")):
            raise AttributeError("a reader is a class with a method pairs")
    except (ImportError, AttributeError, ValueError) as error:
        what, remedy = f"{set_name(key)}: no reader {source.reader}", "name it as package.module.Class"
        raise UserError(what, where=f"{key}.reader", remedy=remedy) from error
    try:
        return reader(**source.reader_options)
    except TypeError as error:
        what, remedy = f"{set_name(key)}: {error}", "check the reader class's arguments"
        raise UserError(what, where=f"{key}.reader_options", remedy=remedy) from error
