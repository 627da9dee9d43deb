"""A stage's folder while it is being made: atomic outputs, and units that stand on their own."""

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from pipeline import artefact

UNITS = "units"  # the folder of the units' records


@dataclasses.dataclass
class StageFolder:
    """What a stage's `build` writes through."""

    path: Path
    fingerprint: str
    inputs: Mapping[str, Path | str]
    resuming: bool = False  # an unfinished attempt with the same fingerprint left its files here
    track: Callable[[dict[str, Any]], None] = lambda line: None  # sends a line of metrics.jsonl to the tracker
    records: set[Path] = dataclasses.field(default_factory=set)  # of the units that belong to this attempt

    def input(self, name: str) -> Path:
        """The folder of a complete input artefact."""
        return Path(self.inputs[name])

    def replacing(self, relative: str) -> AbstractContextManager[Path]:
        """A temporary path that becomes `<stage>/<relative>` when the block ends without an error."""
        return artefact.replacing(self.path / relative)

    def unit(self, name: str, fingerprint: str, make: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
        """Make one independent part of the stage, or take it over when it stands with the same fingerprint.

        `make` writes files below the folder it is given, at the relative paths they get in the stage, and returns
        a JSON-able result, which is what this call returns now and whenever the unit is taken over.
        """
        place = self.path / UNITS / f"{name.replace('/', '--')}.json"
        self.records.add(place)
        record = _read_record(place)
        if record["fingerprint"] == fingerprint and artefact.is_whole(self.path, record["outputs"]):
            return record["result"]
        scratch = self.path / f".{place.stem}{artefact.PARTIAL}"
        artefact.remove(scratch)
        scratch.mkdir(parents=True)
        try:
            result = make(scratch)
            outputs = artefact.describe_outputs(scratch, artefact.files_under(scratch))
            # Not finished, but what it owns, or leaves behind, is known whenever this process is killed.
            artefact.write_json(place, {"fingerprint": None, "outputs": record["outputs"] | outputs, "result": {}})
            for relative in record["outputs"].keys() - outputs:
                artefact.remove(self.path / relative)
            for relative in outputs:
                with self.replacing(relative) as temporary:
                    shutil.move(scratch / relative, temporary)
        finally:
            artefact.remove(scratch)
        artefact.write_json(place, {"fingerprint": fingerprint, "outputs": outputs, "result": result})
        return result

    def remove_untouched_units(self) -> None:
        """Drop what units of an earlier config left behind."""
        places = set((self.path / UNITS).glob("*.json"))
        kept = {output for place in self.records for output in _read_record(place)["outputs"]}
        for place in places - self.records:
            for output in _read_record(place)["outputs"].keys() - kept:
                artefact.remove(self.path / output)
            place.unlink()


def _read_record(place: Path) -> dict[str, Any]:
    try:
        return json.loads(place.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return {"fingerprint": None, "outputs": {}, "result": {}}
