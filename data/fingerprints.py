"""What the pairs are made from, as states that differ where the pairs might; asked whenever a command starts."""

from pathlib import Path
from typing import Any

from configs.schema.data import HubFiles, MiningConfig, SourceConfig
from data.sources.files import locate
from data.sources.readers import open_reader
from pipeline.core.artefact import file_sha256, files_under
from pipeline.core.errors import UserError
from pipeline.core.hub import Revision, lock_state, mirrored


def source_state(name: str, source: SourceConfig, mirror: str | None) -> list[Any]:
    """The source's files or package; what can't be located is named as such, and fails when it is built."""
    if source.hub and not source.path and not source.reader and mirror is None:
        parts = [HubFiles(source.hub, source.revision), *source.also]
        locked = lock_state(Revision("dataset", part.hub, part.revision) for part in parts)
        return [source.hub, source.revision, *locked]  # nothing is downloaded to decide about skipping
    try:
        if source.reader:
            return [source.reader, open_reader(name, source).revision]
        state = locate(name, source, mirror).state()
        return state + (locate(name, source, mirror, dev=True).state() if source.dev_files else [])
    except UserError as error:
        return [error.what]


def mining_state(config: MiningConfig, mirror: str | None) -> list[Any]:
    """The model that mines: contents of a folder, revision of a Hub id."""
    asked = miner_on_hub(config)
    folder = mirrored(asked.hub, mirror) if asked else Path(str(config.model))
    if folder:
        return [[path.relative_to(folder).as_posix(), file_sha256(path)] for path in files_under(folder)]
    return [config.model, config.revision, *lock_state([asked] if asked else [])]


def miner_on_hub(config: MiningConfig) -> Revision | None:
    """What is asked of the Hub; None where the model is a folder."""
    if not config.model or Path(config.model).is_dir():
        return None
    return Revision("model", config.model, config.revision or "main")
