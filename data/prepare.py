"""The data stage: every source of the mixture from its rows to pairs, dev rows and the ledger."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from configs.schema.config import Config
from configs.schema.data import SourceConfig, unit_settings
from data import ledger
from data.devsets import write_dev
from data.fingerprints import mining_state, source_state
from data.one_set import Preparation
from data.pair_files import read_keys
from data.pairs.decontamination import BENCHMARKS, CHECKED, SAMPLES, TextIndex, held_out_texts, read_texts
from data.pairs.maker import Surroundings
from data.pairs.near_duplicates import NearIndex
from data.sources.files import Located, NotSupplied, locate
from data.sources.readers import PairReader, open_reader
from pipeline.core.artefact import StageFolder, digest, file_sha256
from pipeline.core.console import log, progress, show_table
from pipeline.core.errors import UserError, redacted

VERSION = 3  # of the rows that come out of a source for the same config


def build(config: Config, stage: StageFolder) -> dict[str, Any]:
    """Make what is missing of the sets, then dev rows and ledger; raises the first UserError once all were tried."""
    held_out = {
        name: _held_out(name, source, config, stage)
        for name, source in progress(config.data.held_out.items(), "held-out sets", len(config.data.held_out))
    }
    context = _Context(config, stage, held_out)
    lines, failures = [], []
    for name, source in progress(config.data.sources.items(), "training sets", len(config.data.sources)):
        try:
            lines.append(context.training_line(name, source))
        except UserError as error:
            log.error("%s", error.line)
            failures.append(error)
    if failures:
        raise _together(failures)
    dev = context.dev(lines)
    for line in lines:
        line["dev"] = dev.get(line["name"], 0)
    evaluations = json.loads((context.benchmarks / CHECKED).read_text(encoding="utf-8"))
    return _finish(stage, lines + list(held_out.values()), evaluations)


def _together(failures: list[UserError]) -> UserError:
    first = failures[0]
    if len(failures) == 1:
        return first
    return UserError(f"{first.what} [and {len(failures) - 1} more, above]", where=first.where, remedy=first.remedy)


def _held_out(name: str, source: SourceConfig, config: Config, stage: StageFolder) -> dict[str, Any]:
    """The ledger line of a set that is never trained on."""
    nothing = TextIndex.of({})
    print_ = digest(
        [VERSION, "held out", unit_settings(source), _common(config), source_state(name, source, config.mirror)]
    )

    def make(folder: Path) -> dict[str, Any]:
        around = Surroundings(config.data, config.seed, nothing, nothing)
        return Preparation(name, source, around).run_held_out(folder, _rows(name, source, config))

    line = ledger.entry(name, source, stage.unit(f"heldout-{name}", print_, make))
    return line | {"side": "held_out", "status": "held out", "fingerprint": print_}


def _common(config: Config) -> dict[str, Any]:
    """Settings outside a source that change its rows."""
    data = config.data
    return {
        "cleaning": dataclasses.asdict(data.cleaning),
        "decontamination": dataclasses.asdict(data.decontamination),
        "dev": dataclasses.asdict(data.dev),
        "on_bad_row": data.on_bad_row,
        "seed": config.seed,
    }


def _rows(name: str, source: SourceConfig, config: Config) -> Located | PairReader:
    return open_reader(name, source) if source.reader else locate(name, source, config.mirror)


class _Context:
    """What training sets need of their surroundings, loaded only when one of them is made."""

    def __init__(self, config: Config, stage: StageFolder, held_out: dict[str, dict[str, Any]]) -> None:
        self.config, self.stage = config, stage
        self.held_out_prints = {name: line["fingerprint"] for name, line in held_out.items()}
        self.benchmarks = stage.input("benchmarks")
        self.benchmarks_print = digest([file_sha256(self.benchmarks / name) for name in (BENCHMARKS, SAMPLES)])
        self.prints: dict[str, str] = {}
        self._around: Any = None

    def training_line(self, name: str, source: SourceConfig) -> dict[str, Any]:
        """The ledger line of a training set, which is made unless it is there."""
        parts = [VERSION, unit_settings(source), _common(self.config), source_state(name, source, self.config.mirror)]
        if source.negatives == "mine":
            parts += [
                dataclasses.asdict(self.config.data.mining),
                mining_state(self.config.data.mining, self.config.mirror),
            ]
        others = [self.held_out_prints, self.benchmarks_print, self._sets_before(name)]
        self.prints[name] = digest([*parts, *others])
        try:
            made = self.stage.unit(name, self.prints[name], lambda folder: self._make(name, source, folder))
        except UserError as error:
            del self.prints[name]  # the sets after it look for duplicates in what is there
            if not isinstance(error, NotSupplied):
                raise
            return ledger.skipped(name, source, error.what.removeprefix(f"{name}: "))
        return ledger.entry(name, source, made)

    def _sets_before(self, name: str) -> dict[str, str]:
        if self.config.data.cleaning.duplicates != "between":
            return {}
        return {other: print_ for other, print_ in self.prints.items() if other != name}

    def _make(self, name: str, source: SourceConfig, folder: Path) -> dict[str, Any]:
        dev_rows = locate(name, source, self.config.mirror, dev=True) if source.dev_files else None
        around = dataclasses.replace(self._surroundings(), other_pairs=self._pairs_before(name, source))
        return Preparation(name, source, around).run(folder, _rows(name, source, self.config), dev_rows)

    def _pairs_before(self, name: str, source: SourceConfig) -> Any:
        """Keys of the pairs that earlier sets of the same side hold, where duplicates between sets are dropped."""
        earlier = [other for other in self._sets_before(name) if self.config.data.sources[other].side == source.side]
        keys = [read_keys(self.stage.path / "pair_keys" / f"{other}.parquet") for other in earlier]
        return np.unique(np.concatenate(keys)) if keys else np.empty(0, np.uint64)

    def _surroundings(self) -> Any:
        if self._around is None:
            settings = self.config.data.decontamination
            held_out = held_out_texts(self.stage.path / "heldout", list(self.held_out_prints))
            forbidden = TextIndex.of(held_out | read_texts(self.benchmarks / SAMPLES, "evaluation sample"))
            texts = read_texts(self.benchmarks / BENCHMARKS, "evaluation")
            self._around = Surroundings(
                self.config.data, self.config.seed, forbidden, TextIndex.of(texts), mirror=self.config.mirror
            )
            if settings.near_duplicates and texts:
                self._around.near = NearIndex(texts.items(), settings.threshold)
        return self._around

    def dev(self, lines: list[dict[str, Any]]) -> dict[str, int]:
        """Write the dev rows that occur in no other set's training; returns how many each set has."""
        names = [line["name"] for line in lines if line["name"] in self.prints]
        made = self.stage.unit(
            "dev", digest([VERSION, self.prints]), lambda folder: write_dev(self.stage.path, folder, names)
        )
        for stale in set((self.stage.path / "dev").glob("*.parquet")):
            if stale.stem not in made:
                stale.unlink()
        return made


def _finish(stage: StageFolder, lines: list[dict[str, Any]], evaluations: dict[str, Any]) -> dict[str, Any]:
    for line in lines:
        line.pop("fingerprint", None)
    lines = redacted(lines)
    sums = ledger.totals(lines)
    account = {"sets": lines, "totals": sums, "evaluations": evaluations}
    with stage.replacing("ledger.json") as path:
        path.write_text(json.dumps(account, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    with stage.replacing("ledger.md") as path:
        path.write_text(ledger.markdown(lines, sums, evaluations), encoding="utf-8")
    miners = {
        f"{line['name']}, mined by {line['mined']['model']}": line["mined"]["revision"]
        for line in lines
        if line.get("mined")
    }
    rows = [[line["title"], line["side"], *(line[count] for count in ledger.COUNTS), line["status"]] for line in lines]
    show_table("data ledger", ["set", "side", *ledger.COUNTS, "status"], rows)
    return {
        "sets": sum(not line["status"].startswith("skipped") for line in lines if line["side"] != "held_out"),
        "skipped": sum(line["status"].startswith("skipped") for line in lines),
        "pairs": sums["train"],
        "dev": sums["dev"],
        "revisions": {line["name"]: line["revision"] for line in lines} | miners,
        "held_out": sum(line["train"] for line in lines if line["side"] == "held_out"),
    }
