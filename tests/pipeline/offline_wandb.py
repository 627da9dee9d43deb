"""Reads what Weights & Biases writes offline: protocol buffers in the format of LevelDB logs, behind a short header."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

HEADER, BLOCK, FRAME = 7, 32768, 7  # bytes: of the file, of a block of records, before each record
WHOLE_OR_LAST = (1, 4)  # kinds of a record's part


class OfflineRun:
    """One run's group, kind of stage, config, history and artefacts."""

    def __init__(self, folder: Path) -> None:
        self.config: dict[str, Any] = {}
        self.history: list[dict[str, float]] = []
        self.artefacts: dict[str, dict[str, Any]] = {}  # name -> metadata
        self.files: dict[str, list[str]] = {}  # name of an artefact -> paths in it
        self.exit_code: int | None = None
        (file,) = folder.glob("*.wandb")
        for record in _records(file):
            self._take(record)

    def _take(self, record: Any) -> None:
        match record.WhichOneof("record_type"):
            case "run":
                self.group, self.job_type, self.name = (
                    record.run.run_group,
                    record.run.job_type,
                    record.run.display_name,
                )
                self.config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            case "history":
                items = {item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
                self.history.append(items)
            case "artifact":
                self.artefacts[record.artifact.name] = json.loads(record.artifact.metadata)
                self.files[record.artifact.name] = [entry.path for entry in record.artifact.manifest.contents]
            case "exit":
                self.exit_code = record.exit.exit_code


def _records(path: Path) -> Iterator[Any]:
    content, at, parts = path.read_bytes(), HEADER, b""
    while at + FRAME <= len(content):
        if BLOCK - at % BLOCK < FRAME:  # too little is left of the block for another record
            at += BLOCK - at % BLOCK
            continue
        size, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        parts += content[at + FRAME : at + FRAME + size]
        at += FRAME + size
        if kind in WHOLE_OR_LAST:
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record
