"""A stage: settings and inputs determine a fingerprint; its folder is made once, atomically, and reused after that."""

import dataclasses
import gc
import importlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from configs.schema.config import ON_REQUEST, Config, remake
from pipeline.core import artefact, machine
from pipeline.core.artefact import Manifest, StageFolder, read_manifest
from pipeline.core.console import is_main_process, log, show_table
from pipeline.core.errors import UserError, disk_errors_explained
from pipeline.tracking import tracked

Builder = Callable[[Config, StageFolder], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage's inputs, settings and builder; `pipeline/chain.py` defines all of them."""

    name: str
    version: int  # raise it when results change
    build: str | Builder  # writes the outputs, returns metrics; module:function is imported when needed
    settings: Callable[[Config], Any]  # the part of the config that changes the result
    needs: Callable[[Config], Sequence[str]] = lambda config: ()  # stages whose artefacts it reads
    reads: Callable[[Config], Mapping[str, str]] = lambda config: {}  # fingerprints of its other inputs
    implied: bool = False  # made for stages that need it, even if not requested
    in_place: bool = False  # consists of units that survive a changed config
    assist: str | None = None  # builds some of its units on further machines, if several are launched
    on_ranks: bool = False  # built by all processes of `accelerate launch` together
    prepare: str | None = None  # run once by the launching process before the ranks start
    verified: int | None = None  # input files up to this many bytes are verified by sha256 first; None: all
    extra_outputs: Callable[[Config], list[Path]] = lambda config: []  # files it writes outside its folder


def imported(name: str | Builder) -> Builder:
    """The function `module:function`, or the function itself."""
    if callable(name):
        return name
    module, _, function = name.partition(":")
    if module not in sys.modules:
        gc.collect()  # else what is garbage now would be frozen too
        gc.disable()  # libraries leave a million objects; searching them takes a third of a short run's time
        try:
            importlib.import_module(module)
        finally:
            gc.freeze()
            gc.enable()
    return getattr(sys.modules[module], function)


def folder_and_manifest(stage: Stage, config: Config) -> tuple[StageFolder, Manifest]:
    """The stage's folder and its initial manifest; raises UserError if an input is not complete."""
    inputs = {name: config.folder(name) for name in stage.needs(config)}
    needed = {name: input_fingerprint(stage, name, folder) for name, folder in inputs.items()}
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
    """Make the stage's artefact unless it exists; raises UserError for problems the user can fix."""
    folder, manifest = folder_and_manifest(stage, config)
    if not is_main_process():
        return _follow(stage, config, folder)
    if stage.assist and config.is_one_of_many:
        _assist(stage.assist, config, folder)
    shared = config.is_one_of_many or stage.name == "base"  # the base is shared by all runs
    with disk_errors_explained(folder.path), locked(folder.path, wait=shared):
        if done := _reuse_or_restore(stage, config, folder):
            return done
        _verify(stage, folder)
        why = _why_rebuilt(folder.path, manifest)
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
    """Prepare what ranks will read, before they start: without a time limit, and on all cores."""
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
        artefact.remove(_previous(path))  # still there if the process was killed just after completing the new artefact
        log.info("%s: up to date (%s)", stage.name, folder.fingerprint[:12])
    return done


def _why_rebuilt(path: Path, new: Manifest) -> str:
    """Why an existing complete artefact can't be used, in words; empty if there is none."""
    old = read_manifest(path)
    if old is None or old.status != "complete":
        return ""
    if old.fingerprint == new.fingerprint:
        return "" if artefact.is_whole(path, old.outputs) else " again: one of its files was changed, truncated or lost"
    if old.version != new.version:
        return f" again: it was made by version {old.version} of this stage, now {new.version}"
    changed = [name for name in old.inputs.keys() & new.inputs.keys() if old.inputs[name] != new.inputs[name]]
    inputs = {
        "changed": changed,
        "is a new input": new.inputs.keys() - old.inputs,
        "is no longer an input": old.inputs.keys() - new.inputs,
    }
    reasons = [f"{', '.join(sorted(names)[:3])} {what}" for what, names in inputs.items() if names]
    return f" again: {' and '.join(reasons) or 'its settings changed'}"


def _borrowed(path: Path, fingerprint: str) -> Manifest | None:
    """The same artefact from another run, hard-linked: files are only ever replaced, never changed in place."""
    for other in sorted(path.parent.parent.glob(f"*/{path.name}")):
        if (done := read_finished(other, fingerprint)) and read_manifest(other) == done:
            with suppress(OSError), artefact.replacing(path) as temporary:
                artefact.link_tree(other, temporary)
                if read_manifest(temporary) != done or artefact.changed_file(temporary, done.outputs):
                    raise FileNotFoundError(other)  # it is damaged, or being rebuilt: perhaps a third run has it whole
                return done
    return None


def input_fingerprint(stage: Stage, name: str, folder: Path) -> str:
    """The fingerprint of the stage's input `name` in this folder; raises UserError unless it is complete."""
    manifest = read_manifest(folder)
    if manifest and manifest.status == "complete":
        return manifest.fingerprint
    state = manifest.status if manifest else "missing"
    remedy = f"make it first: make {name}" + ", or everything: make reproduce" * (name not in ON_REQUEST)
    raise UserError(f"{stage.name} needs the artefact {name}, which is {state}", where=str(folder), remedy=remedy)


def _verify(stage: Stage, folder: StageFolder) -> None:
    """Raise UserError if an input differs from what its stage wrote: nothing is built on damaged or edited files."""
    for name, source in folder.inputs.items():
        manifest = read_manifest(source)
        changed = artefact.changed_file(source, manifest.outputs, stage.verified) if manifest else None
        if changed:
            what = f"{stage.name} needs {name}, but one of its files was changed, truncated or lost since it was made"
            remedy = f"remove {source} and make it again: {remake([name])}"
            raise UserError(what, where=str(source / changed), remedy=remedy)


def _previous(path: Path) -> Path:
    """Where a complete artefact is kept while its successor is being made."""
    return path.with_name(path.name + ".previous")


def _assist(function: str, config: Config, folder: StageFolder) -> None:
    """Build units of the stage while another process builds it; units that fail here are left to that process."""
    while True:
        try:
            with locked(folder.path):
                return  # no process is building it
        except UserError:
            manifest = read_manifest(folder.path)
        if manifest and (manifest.status, manifest.fingerprint) == ("running", folder.fingerprint):
            break
        time.sleep(1)  # it has only just started, or is still making an earlier version
    log.info("%s: helping the machine that makes %s", folder.name, folder.path)
    try:
        imported(function)(config, folder)
    except (UserError, OSError) as error:
        log.warning("%s: this machine stops helping: %s", folder.name, error)


def _begin(stage: Stage, path: Path, manifest: Manifest) -> bool:
    """Prepare the folder; returns whether an unfinished attempt with the same fingerprint is resumed."""
    old = read_manifest(path)
    resuming = bool(old and old.status != "complete" and old.fingerprint == manifest.fingerprint)
    if not stage.in_place and not resuming and path.exists():
        if old and old.status == "complete":
            artefact.remove(_previous(path))
            path.rename(_previous(path))
        else:
            artefact.remove(path)
    path.mkdir(parents=True, exist_ok=True)
    borrowed = [path.with_name(path.name + artefact.PARTIAL), artefact.retired(path)]  # left by a killed process
    for leftover in [*borrowed, *path.rglob(f"*{artefact.PARTIAL}")]:
        artefact.remove(leftover)
    manifest.write(path)
    return resuming


def _build(stage: Stage, config: Config, folder: StageFolder, manifest: Manifest) -> None:
    path, started = folder.path, time.monotonic()
    machine.reset_peak_memory()
    machine.commit()  # records the commit of the code as it was imported
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
    """Raise UserError if another process started to rebuild an input while this stage read it."""
    for name, source in folder.inputs.items():
        now = read_manifest(source)
        if now is None or (now.status, now.fingerprint) != ("complete", manifest.inputs[name]):
            what = f"{name} was rebuilt while {manifest.stage} read it, and is {now.status if now else 'gone'} now"
            raise UserError(what, where=str(source), remedy="wait until it is complete, then run again")


def _follow(stage: Stage, config: Config, folder: StageFolder) -> Manifest:
    """On ranks other than 0: build along with rank 0, which alone owns lock and manifest."""
    done = read_finished(folder.path, folder.fingerprint)
    if done and not config.force:
        return done
    folder.resuming = _share(False, config.timeout(stage.name))
    with disk_errors_explained(folder.path):
        imported(stage.build)(config, folder)
    return Manifest(stage.name, "complete", folder.fingerprint, {}, {})


def _share(resuming: bool, timeout: float) -> bool:
    """Rank 0's answer on every rank, once rank 0 has prepared the folder."""
    if machine.ranks() == 1:
        return resuming
    from accelerate.utils import broadcast_object_list

    machine.joined_ranks(timeout)
    return bool(broadcast_object_list([resuming])[0])


@contextmanager
def locked(path: Path, purpose: str = "", wait: bool = False) -> Iterator[None]:
    """Hold the artefact's lock for a purpose (none: to write it); the system releases it when this process ends.

    If another process holds it: wait for it, or raise UserError.
    """
    lock = path.parent / ".locks" / f"{path.name}{purpose}.lock"
    try:
        with FileLock(lock, timeout=-1 if wait else 0):
            yield
    except Timeout:
        what = "another process is writing this artefact"
        raise UserError(what, where=str(path), remedy="wait for it, or use another run=<name>") from None
