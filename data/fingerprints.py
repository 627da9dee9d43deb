"""Fingerprints of the pairs' inputs, which change whenever the pairs might; computed whenever a command starts."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import xxhash

from configs.schema.config import Config
from configs.schema.data import HubFiles, SourceConfig
from data.sources.files import Located, locate, open_reader
from pipeline.core.artefact import folder_state, json_sha256, read_once, result_settings
from pipeline.core.errors import UserError
from pipeline.core.hub import Revision, local_model, locked_commit

VERSION = 6  # raised when the same source and config give other rows
HASHED_BYTES = 32 * 2**20
MINING = "mining model"


def data_states(config: Config) -> dict[str, str]:
    """Fingerprints of each source's files and of the mining model, by their names in the manifest."""
    found = {
        f"source:{name}": json_sha256(source_state(config.data.key(name), source, config.mirror))
        for name, source in config.data.all_sources.items()
    }
    for model in config.auxiliary_models("data", own=False).values():
        found[MINING] = json_sha256(model_state(model, config.mirror))
    return found


def mining_settings(config: Config) -> dict[str, Any]:
    """What mined negatives depend on besides the data settings."""
    sides = {source.side for source in config.data.sources.values() if source.negatives == "mine"}
    lengths = {side: mining_length(config, side) for side in sorted(sides)}
    known = "by form, of symmetric sets both ways"  # which texts can't be negatives of an anchor
    return {"lengths": lengths, "precision": config.precision, "known": known} if sides else {}


def mining_length(config: Config, side: str) -> int:
    """The length in tokens at which texts of this side's sets are cut for mining."""
    of_side = config.side(side)
    return config.data.mining.max_length or max(of_side.anchor_length, of_side.positive_length)


def set_fingerprint(name: str, config: Config, states: Mapping[str, str], *compared_with: Any) -> str:
    """The fingerprint of one set's unit.

    It covers the settings that change the set's rows, the set's own entry in `states` (see `data_states`), and what
    the set is compared with, such as the fingerprints of other sets.
    """
    source, data = config.data.all_sources[name], config.data
    of_rows = result_settings(source, "unit")
    settings = [of_rows, data.cleaning, data.decontamination, data.dev, data.on_bad_row, config.seed]
    by = states.get(MINING, states.get(data.mining.model))
    mining = [data.mining, by, mining_settings(config)] if source.negatives == "mine" else []
    return json_sha256([VERSION, *map(result_settings, settings + mining), states[f"source:{name}"], *compared_with])


def source_state(key: str, source: SourceConfig, mirror: str | None) -> list[Any]:
    """The source's files or package; one that can't be located is recorded by its error, and fails when built."""
    if source.hub and not source.path and not source.reader and mirror is None:
        parts = [HubFiles(source.hub, source.revision), *source.also]
        locked = [locked_commit(Revision("dataset", part.hub, part.revision)) for part in parts]
        return [source.hub, source.revision, *filter(None, locked)]  # nothing is downloaded to decide about skipping
    try:
        if source.reader:
            state = [source.reader, open_reader(key, source).revision]
        else:
            state = _files_state(locate(key, source, mirror))
        return state + (_files_state(locate(key, source, mirror, dev=True)) if source.dev_files else [])
    except UserError as error:
        return [error.what]


def _files_state(located: Located) -> list[Any]:
    return [located.revision, *([file.name, *file_state(file.path, _xxh3)] for file in located.files)]


@read_once
def _xxh3(path: Path) -> str:
    return xxhash.xxh3_128_hexdigest(path.read_bytes())


def file_state(path: Path, hashed: Callable[[Path], str]) -> list[Any]:
    """Hash of a small file, so that a fresh checkout changes nothing; size and modification time of a large one."""
    stat = path.stat()
    return [hashed(path)] if stat.st_size <= HASHED_BYTES else [stat.st_size, stat.st_mtime_ns]


def model_state(wanted: str, mirror: str | None) -> list[Any]:
    """A model from outside the run: contents of a folder, revision of a Hub id."""
    if folder := local_model(wanted, mirror):
        return folder_state(folder)
    name, _, revision = wanted.partition("@")
    commit = locked_commit(Revision("model", name, revision or "main"))
    return [name, revision or None, *([commit] if commit else [])]
