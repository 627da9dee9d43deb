"""`make check`: checks every source without preparing it, the disk and the devices; reports all failures at once."""

import dataclasses
import itertools
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
from huggingface_hub import HfApi

from configs.schema.config import SIDES, SIDES_READ, Config
from configs.schema.data import HubFiles, SourceConfig, set_name
from data.ledger import expected_rows
from data.sources.batch import RowErrors
from data.sources.files import HubFile, Located, NotSupplied, locate, matching, open_reader
from data.sources.rows import role_frames
from pipeline.application import hydra_application
from pipeline.core.artefact import is_complete
from pipeline.core.console import progress, show_table
from pipeline.core.device import autocast_dtype, require_devices, training_gpus, training_precision
from pipeline.core.errors import UserError
from pipeline.core.hub import Revision, hub_errors, hub_model, local_model, readable_revision
from pipeline.core.machine import cores
from pipeline.run import require_packages, require_sets
from training.cost_model import shape_of_run, side_memory, trained_parameters
from training.memory import planned_budget

BUSY = 0.5  # load by other processes above which waiting threads should sleep (`make bench NAME=waiting`)
ROOM = 4  # times the sources' size: download, prepared pairs, spilled groups
CHECKPOINTS = 3  # of a side at once: two are kept, one more while it is written


@dataclasses.dataclass
class Look:
    """What the check found out about one source."""

    name: str
    revision: str = ""
    bytes: int | None = None
    licence: str = ""
    access: str = "open"
    first_rows: str = ""
    problem: UserError | None = None


class Finding(NamedTuple):
    """What the check found out about the run or the machine."""

    what: str
    found: str
    problem: UserError | None = None


def look(key: str, source: SourceConfig, mirror: str | None, *, skip: bool = False) -> Look:
    """Revision, size, licence, access and first rows of a source, and any failure: bad rows are one unless `skip`."""
    name, errors = set_name(key), RowErrors(key, skip)
    seen, frames = Look(name, licence=source.licence, access=source.access), list[Any]()
    try:
        if source.reader:
            reader = open_reader(key, source)
            seen.revision = reader.revision
            frames += itertools.islice(role_frames(source, reader, errors), 1)
        else:
            located = _locate(key, source, mirror, seen)
            with hub_errors(name, str(source.hub), key):
                for file in located.files:
                    only = Located((file,), located.revision)
                    frames += itertools.islice(role_frames(source, only, errors, complete=False), 1)
        seen.first_rows = f"{sum(map(len, frames))} rows read"  # those that `where` selects from the beginning
        if not frames:
            where = str(source.path or source.hub or source.reader)
            remedy = f"correct {key}, or remove it from the mixture"
            seen.problem = UserError(f"{name}: the set is empty", where=where, remedy=remedy)
    except UserError as error:
        if isinstance(error, NotSupplied) and key.startswith("data.sources."):  # data ends in it for a held-out set
            seen.first_rows = "not supplied: will be skipped"
        else:
            seen.problem = error
    return seen


def _locate(key: str, source: SourceConfig, mirror: str | None, seen: Look) -> Located:
    if source.path or mirror is not None or source.local_only:
        located = locate(key, source, mirror)
        seen.revision = located.revision
        dev = locate(key, source, mirror, dev=True).files if source.dev_files else ()
        seen.bytes = sum(file.path.stat().st_size for file in (*dev, *located.files))
        files = (dataclasses.replace(file, beginning=True) for file in (*dev, *located.files))
        return Located(tuple(files), located.revision)
    assert source.hub is not None
    parts = [HubFiles(source.hub, source.revision, [*source.dev_files, *source.files]), *source.also]
    found = [_on_hub(key, part, seen) for part in parts]
    seen.revision = ", ".join(part.revision[:12] for part in found)
    return Located(tuple(file for part in found for file in part.files), seen.revision)


def _on_hub(key: str, part: HubFiles, seen: Look) -> Located:
    """The part's files on the Hub, to be read remotely; adds their size, takes licence and access from its page."""
    where = f"{part.hub} at {part.revision}"
    with hub_errors(set_name(key), where, key):
        revision = readable_revision(Revision("dataset", part.hub, part.revision))
        info = HfApi().dataset_info(part.hub, revision=revision, files_metadata=True)
    sizes = {sibling.rfilename: sibling.size or 0 for sibling in info.siblings or []}
    chosen = matching(key, part.files, sorted(sizes), where)
    seen.bytes = (seen.bytes or 0) + sum(sizes[inside] for inside, _ in chosen)
    if info.gated:
        seen.access = f"gated ({info.gated})"
    seen.licence = getattr(info.card_data, "license", None) or seen.licence
    commit = str(info.sha)
    files = (HubFile(Path(inside), inside, member, True, part.hub, commit) for inside, member in chosen)
    return Located(tuple(files), commit)


def missing(config: Config) -> Iterator[Finding]:
    """The first set that a stage needs and data does not provide, and the first package that is not installed."""
    for what, require in {"sets": require_sets, "packages": require_packages}.items():
        try:
            require(config)
        except UserError as error:
            yield Finding(what, "FAILED", error)


def check_auxiliary_models(config: Config) -> Iterator[Finding]:
    """The base, if it is a folder or on the Hub, and each model that mines, guides or teaches."""
    base = {"base.hub": str(config.base.hub)} if config.base.kind == "hub" else {}
    for key, wanted in config.auxiliary_models("data", *config.stages, own=True).items():
        yield Finding(f"{key}: {wanted}", "this run's")
    for key, wanted in (base | config.auxiliary_models("data", *config.stages, own=False)).items():
        asked = hub_model(wanted, config.base.revision if key in base else "main")
        found, problem = "local folder", None
        try:
            if asked and local_model(wanted, config.mirror):
                found = f"mirror of {asked.revision}"
            elif asked:
                with hub_errors(key, f"{asked.hub} at {asked.revision}", key):
                    found = f"commit {HfApi().model_info(asked.hub, revision=readable_revision(asked)).sha}"
        except UserError as error:
            found, problem = "FAILED", error
        yield Finding(f"{key}: {wanted}", found, problem)


def check_machine(config: Config, sources: int) -> list[Finding]:
    """Disk space, given the bytes of the sources, devices and precision; memory if training runs on the CPU."""
    findings = [disk(config, sources)]
    try:
        count = training_gpus(config)
    except UserError as unusable:
        return [*findings, Finding("devices", "FAILED", unusable)]
    names = sorted({torch.cuda.get_device_name(number) for number in range(count)})
    devices = f"{count} x {', '.join(names)}" if count else processor(os.getloadavg()[0], os.environ)
    try:
        require_devices(count, config.launch)
        findings.append(Finding("devices", devices))
    except UserError as too_few:
        findings.append(Finding("devices", devices, too_few))
    processes, remedy = config.ranks(count), "change it, or set launch.processes"
    for name in filter(config.trains, SIDES_READ):
        if problem := config.uneven_shares(name, processes):
            key = f"training.{name}.batch_multiple"
            error = UserError(f"{key} {problem}", where=f"config key {key}", remedy=remedy)
            findings.append(Finding(f"batches of {name}", f"{processes} processes", error))
    try:
        precision = training_precision(config.precision)
        tf32 = " (matrix products in TF32)" if precision == "fp32" and count else ""
        findings.append(Finding("precision", precision + tf32))
    except UserError as error:
        findings.append(Finding("precision", config.precision, error))
    sides = [name for name in SIDES if name in config.stages]
    return [*findings, memory(config, sides)] if sides and not count else findings


def disk(config: Config, sources: int) -> Finding:
    """The space the run needs, and the free space."""
    runs, models = Path(config.runs), model_bytes(config)
    place = next(folder for folder in (runs, *runs.absolute().parents) if folder.exists())
    free, needed = shutil.disk_usage(place).free, ROOM * sources + sum(models.values())
    parts = ", ".join(f"{name} {_gigabytes(size)}" for name, size in {"sources": sources, **models}.items())
    problem = None
    if free < needed:
        what = f"{_gigabytes(free)} free, about {_gigabytes(needed)} needed ({parts})"
        problem = UserError(what, where=str(place), remedy="make room, or set runs=<folder> on a larger disk")
    return Finding("disk", f"{_gigabytes(free)} free, {parts}", problem)


def model_bytes(config: Config) -> dict[str, int]:
    """Bytes that the unfinished stages write, in float32: models, the mined sets' vectors, and the checkpoints of the
    largest side with AdamW's two moments; empty if the model's shape or its adapter's isn't known.
    """
    missing = [name for name in config.stages if not is_complete(config.folder(name))]
    try:
        shape = shape_of_run(config)
        trained = [trained_parameters(shape, config.side(name)) for name in SIDES if name in missing]
    except UserError:
        return {}
    sets = config.data.sources.values() if "data" in missing else ()
    mined = sum(expected_rows(source) for source in sets if source.negatives == "mine")
    sizes = {
        "models": 4 * shape.parameters * len({"init", *SIDES_READ, "merge"} & {*missing}),
        "vectors": 4 * shape.hidden_size * 2 * mined,  # an anchor and a positive per pair
        "checkpoints": CHECKPOINTS * 3 * 4 * max(trained, default=0),
    }
    return {name: size for name, size in sizes.items() if size}


def processor(load: float, environment: Mapping[str, str]) -> str:
    """The CPU and its load: next to other processes, threads that spin while waiting are slow."""
    if load < BUSY or environment.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}:
        return "CPU only"
    busy = f"{min(load, cores()):.1f} of {cores()} cores busy"  # the load also counts waiting processes
    return f"CPU only, {busy}: OMP_WAIT_POLICY=passive trains faster alongside other processes"


def memory(config: Config, sides: list[str]) -> Finding:
    """The memory that training takes on a CPU, and the machine's memory."""
    half = autocast_dtype(config.precision) is not None
    budgets = {name: planned_budget(config.side(name)).tokens for name in sides}
    try:
        shape = shape_of_run(config)
        parts = {name: side_memory(config, name, shape, budgets[name], half) for name in sides}
    except UserError as unknown:
        return Finding("memory", f"not known: {unknown.what}")
    side = max(sides, key=lambda name: sum(parts[name].values()))
    most = sum(parts[side].values())
    least = most - parts[side]["freed and kept"]  # of which a process keeps what fits
    there = psutil.virtual_memory().total
    found = f"{side} takes {least / 1e9:.1f} to {_gigabytes(most)}, {_gigabytes(there)} here"
    if least < there:
        return Finding("memory", found)
    what, where = f"too little memory: {found}", f"config key training.{side}.mini_batch_tokens"
    remedy = "lower it: larger batches then go through gradient caching"
    return Finding("memory", found, UserError(what, where=where, remedy=remedy))


def check(config: Config) -> None:
    """Show the tables; raises UserError if anything failed, after everything was checked."""
    sources = {config.data.key(name): source for name, source in config.data.all_sources.items()}
    skip = config.data.on_bad_row == "skip"
    looks = [look(key, source, config.mirror, skip=skip) for key, source in progress(sources.items(), "sources")]
    columns = ["source", "revision", "MB", "access", "licence", "first rows"]
    rows: list[tuple[object, ...]] = [
        (seen.name, seen.revision, None if seen.bytes is None else f"{seen.bytes / 1e6:,.1f}", seen.access,
         seen.licence, "FAILED" if seen.problem else seen.first_rows)
        for seen in looks
    ]  # fmt: skip
    show_table("sources", columns, rows)
    findings = [
        *missing(config),
        *check_auxiliary_models(config),
        *check_machine(config, sum(seen.bytes or 0 for seen in looks)),
    ]
    show_table("machine", ["what", "found"], [(finding.what, finding.found) for finding in findings])
    problems = [*(look.problem for look in looks), *(finding.problem for finding in findings)]
    failed = [problem for problem in problems if problem is not None]
    if failed:
        rows_of_failures = list(grouped(failed))
        show_table("failures", ["what", "where", "remedy"], rows_of_failures)
        what = f"{len(failed)} of {len(looks) + len(findings)} checks failed"
        raise UserError(what, where="; ".join(what for what, *_ in rows_of_failures), remedy="see the table above")


def grouped(failed: Iterable[UserError]) -> Iterator[tuple[str, str, str]]:
    """(what, where, remedy) of each failure; those that differ in the set's name alone share a row, without `where`."""
    alike: dict[tuple[str, str], dict[str, UserError]] = {}
    for error in failed:
        name, _, problem = error.what.partition(": ")
        alike.setdefault((problem or error.what, error.remedy), {})[name] = error
    for (problem, remedy), errors in alike.items():
        first = next(iter(errors.values()))
        whole = (f"{', '.join(errors)}: {problem}", "") if len(errors) > 1 else (first.what, first.where)
        yield *whole, remedy


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"


main = hydra_application(check)

if __name__ == "__main__":
    main()
