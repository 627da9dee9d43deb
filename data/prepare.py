"""The data stage: turns every source of the mixture into pairs, dev rows and a ledger."""

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from configs.schema.config import Config
from configs.schema.data import SourceConfig
from data import ledger
from data.artefact import held_out_file
from data.fingerprints import VERSION, set_fingerprint
from data.pair_files import read_keys
from data.pairs.decontamination import BENCHMARK_FILE, CHECKED_FILE, SAMPLE_FILE, Decontamination
from data.pairs.hashing import NO_KEYS
from data.sampling import write_dev
from data.set_builder import SetBuilder
from data.sources.files import NotSupplied
from pipeline.core.artefact import StageFolder, file_sha256, json_sha256, read_json, read_manifest, write_json
from pipeline.core.console import log, progress, show_table
from pipeline.core.errors import UserError, redacted

FEW_DEV_ROWS = 50
SHOWN = 3  # sets named in a warning


def build(config: Config, stage: StageFolder) -> dict[str, Any]:
    """Build the missing sets, then dev rows and ledger; raises the first UserError after all sets were tried."""
    sets, data = _Sets(config, stage), config.data
    evaluations = read_json(sets.benchmarks / CHECKED_FILE)
    if missing := evaluations["not_checked"]:
        what = "decontamination: %d evaluations not checked: %s (reasons in %s; retry with make benchmarks PROFILE=%s "
        what += "RUN=%s ARGS=force=true; data and later stages are rebuilt if more of them can be read)"
        reasons = sets.benchmarks / CHECKED_FILE
        log.warning(what, len(missing), ", ".join(missing), reasons, config.profile, config.run)
    held_out = [sets.held_out_line(*item) for item in progress(data.held_out.items(), "held-out sets")]
    lines, failures = [], list[UserError]()
    for name, source in progress(data.sources.items(), "training sets"):
        try:
            lines.append(sets.training_line(name, source))
        except UserError as error:
            if failures:  # the first one ends the command
                log.error("%s", error.line)
            failures.append(error)
    if failures:
        first, more = failures[0], f" [and {len(failures) - 1} more, above]" if len(failures) > 1 else ""
        raise UserError(f"{first.what}{more}", where=first.where, remedy=first.remedy)
    dev = sets.dev_rows()
    for line in lines:
        line["dev"] = dev.get(line["name"], 0)
    _warn_of_few(lines)
    return _finish(stage, lines + held_out, evaluations)


def _warn_of_few(lines: list[dict[str, Any]]) -> None:
    few = [f"{line['name']} {line['dev']}" for line in lines if line["dev_candidates"] and line["dev"] < FEW_DEV_ROWS]
    if few:
        named, more = ", ".join(few[:SHOWN]), f" and {len(few) - SHOWN} more sets" if len(few) > SHOWN else ""
        what = "under %d dev rows, so their scores are unreliable and count little: %s%s (%s)"
        log.warning(what, FEW_DEV_ROWS, named, more, "raise data.sources.<set>.dev_anchors or data.dev.share")


class _Sets:
    """The mixture's sets, each a unit of the stage, and what later ones are compared with."""

    def __init__(self, config: Config, stage: StageFolder) -> None:
        self.config, self.stage = config, stage
        manifest = read_manifest(stage.path)
        assert manifest is not None  # written before a stage is built
        self.states = manifest.inputs
        self.benchmarks = stage.inputs["benchmarks"]
        self.benchmark_texts = json_sha256(
            [file_sha256(self.benchmarks / name) for name in (BENCHMARK_FILE, SAMPLE_FILE)]
        )
        self.held_out: dict[str, str] = {}  # fingerprints by name
        self.training: dict[str, str] = {}

    def held_out_line(self, name: str, source: SourceConfig) -> dict[str, Any]:
        """The ledger line of a set that is never trained on, built if missing."""
        self.held_out[name] = set_fingerprint(name, self.config, self.states)
        builder = SetBuilder(name, self.config, Decontamination())
        made = self.stage.unit(f"heldout-{name}", self.held_out[name], builder.write_held_out)
        return ledger.entry(name, source, made) | {"side": ledger.HELD_OUT, "status": "held out"}

    def training_line(self, name: str, source: SourceConfig) -> dict[str, Any]:
        """The ledger line of a training set, built if missing."""
        between = self.config.data.cleaning.duplicates == "between"
        earlier = dict(self.training) if between else {}  # sets whose pairs count as duplicates here
        fingerprint = set_fingerprint(name, self.config, self.states, self.held_out, self.benchmark_texts, earlier)

        def make(folder: Path) -> dict[str, Any]:
            same_side = [other for other in earlier if self.config.data.sources[other].side == source.side]
            keys = [read_keys(self.stage.path / "pair_keys" / f"{other}.parquet") for other in same_side]
            pairs = np.unique(np.concatenate([NO_KEYS, *keys]))
            return SetBuilder(name, self.config, self.decontamination, pairs).write_training(folder)

        try:
            made = self.stage.unit(name, fingerprint, make)
        except NotSupplied as error:
            return ledger.skipped(name, source, error.what.removeprefix(f"{name}: "))
        self.training[name] = fingerprint
        return ledger.entry(name, source, made)

    @cached_property
    def decontamination(self) -> Decontamination:
        """What training sets are checked against; loaded when the first one is built."""
        held_out = {name: held_out_file(self.stage.path, name) for name in self.held_out}
        return Decontamination.loaded(self.config.data, held_out, self.benchmarks)

    def dev_rows(self) -> dict[str, int]:
        """Write the dev rows that occur in no set's training rows; returns how many each set has."""
        return self.stage.unit(
            "dev",
            json_sha256([VERSION, self.training]),
            lambda folder: write_dev(self.stage.path, folder, list(self.training)),
        )


def _finish(stage: StageFolder, lines: list[dict[str, Any]], evaluations: dict[str, Any]) -> dict[str, Any]:
    lines = redacted(lines)
    sums = ledger.totals(lines)
    write_json(stage.path / "ledger.json", {"sets": lines, "totals": sums, "evaluations": evaluations})
    with stage.replacing("ledger.md") as path:
        path.write_text(ledger.markdown(lines, sums, evaluations), encoding="utf-8")
    miners = {
        f"{line['name']}, mined by {line['mined']['model']}": line["mined"]["revision"]
        for line in lines
        if line.get("mined")
    }
    show_table(f"data ledger, with the reasons in {stage.path / 'ledger.md'}", *ledger.table(lines))
    return {
        "sets": sum(not line["status"].startswith("skipped") for line in lines if line["side"] != ledger.HELD_OUT),
        "skipped": sum(line["status"].startswith("skipped") for line in lines),
        "pairs": sums["train"],
        "dev": sums["dev"],
        "revisions": {line["name"]: line["revision"] for line in lines} | miners,
        "held_out": sum(line["train"] for line in lines if line["side"] == ledger.HELD_OUT),
    }
