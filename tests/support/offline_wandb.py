"""Reads what Weights & Biases writes offline: protocol buffers in the format of LevelDB logs, after a short header."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

from pipeline.core.artefact import files_under, read_manifest
from pipeline.core.errors import redacted
from pipeline.tracking import link

HEADER, BLOCK, FRAME = 7, 32768, 7  # bytes: of the file, of a block of records, before each record
WHOLE_OR_LAST = (1, 4)  # kinds of a record's part


class OfflineRun:
    """One run's group, kind of stage, config, history, summary and artefacts."""

    def __init__(self, folder: Path) -> None:
        self.config: dict[str, Any] = {}
        self.history: list[dict[str, float]] = []
        self.artefacts: dict[str, dict[str, Any]] = {}  # name -> metadata
        self.files: dict[str, list[str]] = {}  # name of an artefact -> paths in it
        self.summary: dict[str, float] = {}
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
            case "summary":
                self.summary |= {item.key: json.loads(item.value_json) for item in record.summary.update}
            case "artifact":
                self.artefacts[record.artifact.name] = json.loads(record.artifact.metadata)
                self.files[record.artifact.name] = [entry.path for entry in record.artifact.manifest.contents]
            case "exit":
                self.exit_code = record.exit.exit_code


def runs_by_stage(folder: Path) -> dict[str, OfflineRun]:
    """What each stage of a chain left in `folder`/wandb; fails if one left two."""
    made = [OfflineRun(run) for run in (folder / "wandb").glob("offline-run-*")]
    stages = {run.job_type: run for run in made}
    assert len(stages) == len(made)
    return stages


def require_a_linked_chain(run: Path, base: Path, key: str = "") -> dict[str, OfflineRun]:
    """Every stage of `run`, and its base, is one finished run with config, curves and links that are its artefacts'.

    The inputs' links form the chain; `key` is a secret that must occur nowhere.
    """
    manifests = {path.parent.name: read_manifest(path.parent) for path in run.glob("*/manifest.json")}
    manifests |= {"base": read_manifest(base)}
    stages = runs_by_stage(run)
    assert stages.keys() == manifests.keys()
    for stage, tracked in stages.items():
        manifest = manifests[stage]
        assert manifest and manifest.status == "complete"
        name = link(stage, manifest.fingerprint)
        assert (tracked.group, tracked.exit_code) == (run.name, 0)
        assert tracked.config.items() >= {**redacted(manifest.config), "fingerprint": manifest.fingerprint}.items()
        assert tracked.files == {name: ["manifest.json"]}
        closing = {name.replace(" ", "_"): value for name, value in manifest.metrics.items() if is_number(value)}
        assert closing.items() <= tracked.summary.items()
        links = {source: link(source, fingerprint) for source, fingerprint in manifest.inputs.items()}
        assert tracked.artefacts[name]["inputs"] == tracked.config["inputs"] == links
    for path in run.glob("*/metrics.jsonl"):
        steps: dict[int, dict[str, Any]] = {}  # what a step logged: training and, where it was scored, dev scores
        for line in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
            steps.setdefault(line.pop("step"), {}).update(line)
        curve = {entry["_step"]: entry for entry in stages[path.parent.name].history}
        for step, logged in steps.items():
            assert curve[step].items() >= {name: value for name, value in logged.items() if is_number(value)}.items()
    assert not key or not any(key.encode() in path.read_bytes() for path in files_under(run / "wandb"))
    return stages


def is_number(value: Any) -> bool:
    return isinstance(value, int | float)


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
