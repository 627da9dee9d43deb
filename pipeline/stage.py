"""A stage: settings and inputs give a fingerprint; its folder is made once, whole, and skipped when it is there."""

import dataclasses
import pkgutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from configs.schema.config import Config
from pipeline.core import artefact, machine
from pipeline.core.artefact import Manifest, StageFolder, read_manifest
from pipeline.core.console import is_main_process, log, show_table
from pipeline.core.errors import UserError, disk_errors_explained
from pipeline.tracking import tracked

Builder = Callable[[Config, StageFolder], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Stage:
    """What a stage is made from, what changes it, and who builds it; `pipeline/chain.py` holds them all."""

    name: str
    version: int  # raised by a developer when results change
    build: str | Builder  # writes the outputs, returns metrics; module:function is imported when the stage is made
    settings: Callable[[Config], Any]  # the part of the config that changes the result
    needs: Callable[[Config], Sequence[str]] = lambda config: ()  # the stages whose artefacts it reads
    reads: Callable[[Config], Mapping[str, str]] = lambda config: {}  # fingerprints of what else it reads
    implied: bool = False  # made first for whoever needs it, also where nobody asked for it
    in_place: bool = False  # made of units that survive a changed config
    assist: str | None = None  # works on its units beside the machine that builds it, where several are launched
    on_ranks: bool = False  # built by all processes of `accelerate launch` together
    prepare: str | None = None  # what one process does for all of them, before they start
    verified: int | None = None  # inputs' files of up to so many bytes are compared by sha256 before; None: all
    extra_outputs: Callable[[Config], list[Path]] = lambda config: []  # files that it writes outside its folder


def imported(name: str | Builder) -> Builder:
    """The function `module:function`, or the function itself."""
    return name if callable(name) else pkgutil.resolve_name(name)


def folder_and_manifest(stage: Stage, config: Config) -> tuple[StageFolder, Manifest]:
    """The stage's folder and the manifest it starts with; raises UserError where an input is not complete."""
    inputs = {name: config.folder(name) for name in stage.needs(config)}
    needed = {name: _input_fingerprint(stage, name, folder) for name, folder in inputs.items()}
    settings = artefact.result_settings({"settings": stage.settings(config), "seed": config.seed})
    fingerprints, made_by = {**needed, **stage.reads(config)}, {"stage": stage.name, "version": stage.version}
    fingerprint = artefact.json_sha256({**made_by, "settings": settings, "inputs": fingerprints})
    manifest = Manifest(stage.name, "running", fingerprint, fingerprints, dataclasses.asdict(config))
    manifest.version = stage.version
    return StageFolder(stage.name, config.folder(stage.name), fingerprint, inputs), manifest


def read_finished(path: Path, fingerprint: str) -> Manifest | None:
    """The manifest of a complete and whole artefact with this fingerprint, else None."""
    for folder in (path, _previous(path)):
        manifest = read_manifest(folder)
        is_asked = manifest and (manifest.status, manifest.fingerprint) == ("complete", fingerprint)
        if manifest and is_asked and artefact.is_whole(folder, manifest.outputs):
            return manifest
    return None


def run_stage(stage: Stage, config: Config) -> Manifest:
    """Make the stage's artefact unless it is there; raises UserError for what the user can mend."""
    folder, manifest = folder_and_manifest(stage, config)
    if not is_main_process():
        return _follow(stage, config, folder)
    if stage.assist and config.is_one_of_many:
        _assist(stage.assist, config, folder)
    shared = config.is_one_of_many or stage.name == "base"  # which all runs share
    with disk_errors_explained(folder.path), locked(folder.path, wait=shared):
        if done := _reuse_or_restore(stage, config, folder):
            return done
        _verify(stage, folder)
        why = _why_anew(folder.path, manifest)
        resuming = _begin(stage, folder.path, manifest)
        if config.force:
            folder.forget_units()
        folder.resuming = _share(resuming, config.timeout(stage.name)) if stage.on_ranks else resuming
        log.info("%s: %s %s%s", stage.name, "resuming" if folder.resuming else "making", folder.path, why)
        with tracked(config, folder, manifest) as folder.track:
            _build(stage, config, folder, manifest)
        artefact.remove(_previous(folder.path))
    rows = [(name, value) for name, value in manifest.metrics.items() if isinstance(value, str | int | float)]
    show_table(f"{stage.name}: {folder.path}, {manifest.seconds:.1f} s", ["what", "value"], rows)
    return manifest


def is_up_to_date(stage: Stage, config: Config) -> bool:
    """Whether `run_stage` has nothing to build, once a finished artefact is reused; raises UserError as it would."""
    folder, _ = folder_and_manifest(stage, config)
    with locked(folder.path, wait=config.is_one_of_many):
        return _reuse_or_restore(stage, config, folder) is not None


def prepare_ranks(stage: Stage, config: Config) -> None:
    """What ranks will read, made before they start: without a limit of time, and with all cores."""
    folder, _ = folder_and_manifest(stage, config)
    _verify(stage, folder)
    if stage.prepare:
        with disk_errors_explained(folder.path):
            imported(stage.prepare)(config, folder)


def _reuse_or_restore(stage: Stage, config: Config, folder: StageFolder) -> Manifest | None:
    """The finished artefact at its place: there already, moved back from `_previous`, or linked from another run."""
    path = folder.path
    if config.force or not all(file.exists() for file in stage.extra_outputs(config)):
        return None
    done = read_finished(path, folder.fingerprint)
    if done and read_manifest(path) != done:
        artefact.remove(path)
        _previous(path).rename(path)
    if not done and config.borrow:
        done = _borrowed(path, folder.fingerprint)
    if done:
        artefact.remove(_previous(path))  # left by a kill between the new artefact's end and this
        log.info("%s: up to date (%s)", stage.name, folder.fingerprint[:12])
    return done


def _why_anew(path: Path, new: Manifest) -> str:
    """Why a complete artefact does not stand for what is asked, in words; empty where there is none."""
    old = read_manifest(path)
    if old is None or old.status != "complete":
        return ""
    if old.fingerprint == new.fingerprint:
        return "" if artefact.is_whole(path, old.outputs) else " anew: a file of it was changed, cut off or lost"
    if old.version is None:
        return " anew: an earlier version of the pipeline made it"
    if old.version != new.version:
        return f" anew: version {old.version} of this stage made it, which is {new.version} now"
    changed = [name for name in old.inputs.keys() & new.inputs.keys() if old.inputs[name] != new.inputs[name]]
    inputs = {
        "changed": changed,
        "is read now": new.inputs.keys() - old.inputs,
        "is not read now": old.inputs.keys() - new.inputs,
    }
    said = [f"{', '.join(sorted(names)[:3])} {what}" for what, names in inputs.items() if names]
    return f" anew: {' and '.join(said) or 'its settings changed'}"


def _borrowed(path: Path, fingerprint: str) -> Manifest | None:
    """The same artefact of another run, linked into this one: files are only ever replaced, never changed in place."""
    for other in sorted(path.parent.parent.glob(f"*/{path.name}")):
        if (done := read_finished(other, fingerprint)) and read_manifest(other) == done:
            with artefact.replacing(path) as temporary:
                artefact.link_tree(other, temporary)
            return done
    return None


def _input_fingerprint(stage: Stage, name: str, folder: Path) -> str:
    manifest = read_manifest(folder)
    if manifest and manifest.status == "complete":
        return manifest.fingerprint
    state = manifest.status if manifest else "not there"
    raise UserError(
        f"{stage.name} needs the artefact {name}, which is {state}",
        where=str(folder),
        remedy=f"make it first: make {name}, or everything: make reproduce",
    )


def _verify(stage: Stage, folder: StageFolder) -> None:
    """Raise UserError where an input is not what its stage left: nothing is built on a damaged or edited file."""
    for name, source in folder.inputs.items():
        manifest = read_manifest(source)
        changed = artefact.changed_file(source, manifest.outputs, stage.verified) if manifest else None
        if changed:
            what = f"{stage.name} needs {name}, of which a file was changed, cut off or lost since it was made"
            remedy = f"remove {source} and make it again: make reproduce"
            raise UserError(what, where=str(source / changed), remedy=remedy)


def _previous(path: Path) -> Path:
    """Where a complete artefact waits while its successor is being made."""
    return path.with_name(path.name + ".previous")


def _assist(function: str, config: Config, folder: StageFolder) -> None:
    """While another process builds the stage, work on units of it; what fails here is left to that process."""
    while True:
        try:
            with locked(folder.path):
                return  # nobody builds it
        except UserError:
            manifest = read_manifest(folder.path)
        if manifest and (manifest.status, manifest.fingerprint) == ("running", folder.fingerprint):
            break
        time.sleep(1)  # it has only just begun, or still makes an earlier state
    log.info("%s: beside the machine that makes %s", folder.name, folder.path)
    try:
        imported(function)(config, folder)
    except (UserError, OSError) as error:
        log.warning("%s: no more help from this machine: %s", folder.name, error)


def _begin(stage: Stage, path: Path, manifest: Manifest) -> bool:
    """Make the folder ready; returns whether an unfinished attempt of the same fingerprint is taken up."""
    old = read_manifest(path)
    resuming = bool(old and old.status != "complete" and old.fingerprint == manifest.fingerprint)
    if not stage.in_place and not resuming and path.exists():
        if old and old.status == "complete":
            artefact.remove(_previous(path))
            path.rename(_previous(path))
        else:
            artefact.remove(path)
    path.mkdir(parents=True, exist_ok=True)
    borrowed = [path.with_name(path.name + artefact.PARTIAL), artefact.retired(path)]  # by a process that was killed
    for leftover in [*borrowed, *path.rglob(f"*{artefact.PARTIAL}")]:
        artefact.remove(leftover)
    manifest.write(path)
    return resuming


def _build(stage: Stage, config: Config, folder: StageFolder, manifest: Manifest) -> None:
    path, started = folder.path, time.monotonic()
    machine.reset_peak_memory()
    machine.commit()  # of the code at the start
    try:
        try:
            manifest.metrics = imported(stage.build)(config, folder)
        finally:
            _require_same_inputs(folder, manifest)
        folder.remove_untouched_units()
        manifest.outputs = artefact.describe_outputs(path)
        manifest.status = "complete"
    except BaseException as error:
        manifest.status = "failed"
        manifest.error = error.line if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        raise
    finally:
        manifest.seconds = round(time.monotonic() - started, 3)
        manifest.peak_rss_bytes, manifest.peak_gpu_bytes = machine.peak_memory(), machine.peak_gpu_memory()
        manifest.environment = machine.environment()
        manifest.write(path)


def _require_same_inputs(folder: StageFolder, manifest: Manifest) -> None:
    """Raise UserError where another process began to make an input anew while this stage read it."""
    for name, source in folder.inputs.items():
        now = read_manifest(source)
        if now is None or (now.status, now.fingerprint) != ("complete", manifest.inputs[name]):
            what = f"{name} was made anew while {manifest.stage} read it, and is {now.status if now else 'gone'} now"
            raise UserError(what, where=str(source), remedy="wait until it is complete, then run again")


def _follow(stage: Stage, config: Config, folder: StageFolder) -> Manifest:
    """On ranks other than 0: build beside rank 0, which alone owns lock and manifest."""
    done = read_finished(folder.path, folder.fingerprint)
    if done and not config.force:
        return done
    folder.resuming = _share(False, config.timeout(stage.name))
    with disk_errors_explained(folder.path):
        imported(stage.build)(config, folder)
    return Manifest(stage.name, "complete", folder.fingerprint, {}, {})


def _share(resuming: bool, timeout: float) -> bool:
    """Rank 0's answer on every rank, once rank 0 has made the folder ready."""
    if machine.ranks() == 1:
        return resuming
    from accelerate.utils import broadcast_object_list

    machine.joined_ranks(timeout)
    return bool(broadcast_object_list([resuming])[0])


@contextmanager
def locked(path: Path, purpose: str = "", wait: bool = False) -> Iterator[None]:
    """Hold the artefact's lock for a purpose (none: to write it); the system releases it when this process ends.

    Where another process holds it: wait for it, or raise UserError.
    """
    lock = path.parent / ".locks" / f"{path.name}{purpose}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(lock, timeout=-1 if wait else 0):
            yield
    except Timeout:
        what = "another process is writing this artefact"
        raise UserError(what, where=str(path), remedy="wait for it, or use another run=<name>") from None
