"""The data stage: every source of the mixture from its rows to pairs, dev rows and the ledger."""

import dataclasses
import hashlib
import importlib.metadata
import json
import os
from pathlib import Path
from typing import Any

from data import ledger
from data.config import HubFiles, SourceConfig, unit_settings
from data.files import Located, NotSupplied, locate
from data.readers import PairReader, open_reader
from pipeline.artefact import file_sha256, result_settings
from pipeline.config import Config
from pipeline.console import log, progress, show_table
from pipeline.errors import UserError
from pipeline.revisions import Revision, lock_state
from pipeline.secrets import redacted
from pipeline.stage import Stage, StageFolder, application

VERSION = 2  # raised when the rows that come out change for the same config
EVALUATION_SAMPLES = Path(__file__).resolve().parent.parent / "evaluation" / "samples"


def settings(config: Config) -> dict[str, Any]:
    """What changes the artefact: all of the data config, weights included (they stand in the ledger)."""
    return {"data": result_settings(config.data), "seed": config.seed}


def inputs(config: Config) -> dict[str, str]:
    """A fingerprint for each source's files; what can't be located is named as such and fails when it is built."""
    states = {f"source:{name}": digest(_state(name, source, config)) for name, source in all_sources(config).items()}
    if config.data.mines:
        states["mining model"] = digest(_mining_model(config))
    return states | {"evaluation samples": digest(_sample_states()), "benchmarks": _benchmarks_print(config)}


def all_sources(config: Config) -> dict[str, SourceConfig]:
    """Training and held-out sources by name."""
    return {**config.data.held_out, **config.data.sources}


def digest(content: Any) -> str:
    """A sha256 of JSON-able content."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def _state(name: str, source: SourceConfig, config: Config) -> list[Any]:
    if source.hub and not source.path and not source.reader and config.mirror is None:
        parts = [HubFiles(source.hub, source.revision), *source.also]
        locked = lock_state(Revision("dataset", part.hub, part.revision) for part in parts)
        return [source.hub, source.revision, *locked]  # nothing is downloaded to decide about skipping
    try:
        if source.reader:
            return [source.reader, open_reader(name, source).revision]
        state = locate(name, source, config.mirror).state()
        return state + (locate(name, source, config.mirror, dev=True).state() if source.dev_files else [])
    except UserError as error:
        return [error.what]


def _sample_states() -> list[list[str]]:
    files = sorted(EVALUATION_SAMPLES.glob("*.jsonl"))
    return [[file.name, file_sha256(file)] for file in files]


def _benchmarks_print(config: Config) -> str:
    """What the texts of the benchmarks depend on; revisions of mteb's data come with its version."""
    chosen = config.data.decontamination
    if chosen.mode == "off" or not chosen.suites:
        return digest([])
    encodechka = config.evaluation.encodechka or os.environ.get("ENCODECHKA_DATA_PATH")
    suites = {
        name: dataclasses.asdict(suite) for name, suite in config.evaluation.suite.items() if name in chosen.suites
    }
    return digest([VERSION, chosen.suites, suites, encodechka, config.mirror, importlib.metadata.version("mteb")])


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
    return _finish(stage, lines + list(held_out.values()), context.evaluations)


def _together(failures: list[UserError]) -> UserError:
    first = failures[0]
    if len(failures) == 1:
        return first
    return UserError(f"{first.what} [and {len(failures) - 1} more, above]", where=first.where, remedy=first.remedy)


def _held_out(name: str, source: SourceConfig, config: Config, stage: StageFolder) -> dict[str, Any]:
    """The ledger line of a set that is never trained on."""
    from data.decontamination import TextIndex
    from data.pairs import Surroundings
    from data.preparation import Preparation

    nothing = TextIndex.of({})
    print_ = digest([VERSION, "held out", unit_settings(source), _common(config), _state(name, source, config)])

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


def _mining_model(config: Config) -> list[Any]:
    from data.mining import model_state

    return model_state(config.data.mining, config.mirror)


class _Context:
    """What training sets need of their surroundings, loaded only when one of them is made."""

    def __init__(self, config: Config, stage: StageFolder, held_out: dict[str, dict[str, Any]]) -> None:
        self.config, self.stage = config, stage
        self.held_out_prints = {name: line["fingerprint"] for name, line in held_out.items()}
        self.evaluations, self.benchmarks_print = self._benchmarks()
        self.prints: dict[str, str] = {}
        self._around: Any = None

    def training_line(self, name: str, source: SourceConfig) -> dict[str, Any]:
        """The ledger line of a training set, which is made unless it is there."""
        parts = [VERSION, unit_settings(source), _common(self.config), _state(name, source, self.config)]
        if source.negatives == "mine":
            parts += [dataclasses.asdict(self.config.data.mining), _mining_model(self.config)]
        others = [self.held_out_prints, _sample_states(), self.benchmarks_print, self._sets_before(name)]
        self.prints[name] = digest([*parts, *others])
        try:
            made = self.stage.unit(name, self.prints[name], lambda folder: self._make(name, source, folder))
        except UserError as error:
            del self.prints[name]  # the sets after it look for duplicates in what is there
            if not isinstance(error, NotSupplied):
                raise
            return ledger.skipped(name, source, error.what.removeprefix(f"{name}: "))
        return ledger.entry(name, source, made)

    def _benchmarks(self) -> tuple[dict[str, Any], str]:
        """Which evaluations are checked and which can't be, and a digest of their texts."""
        if self.config.data.decontamination.mode == "off" or not self.config.data.decontamination.suites:
            return {"checked": {}, "not_checked": {}}, ""
        from data.evaluation_texts import BENCHMARKS, write_benchmarks

        print_ = _benchmarks_print(self.config)
        made = self.stage.unit("benchmarks", print_, lambda folder: write_benchmarks(self.config, folder))
        return made, file_sha256(self.stage.path / BENCHMARKS)

    def _sets_before(self, name: str) -> dict[str, str]:
        if self.config.data.cleaning.duplicates != "between":
            return {}
        return {other: print_ for other, print_ in self.prints.items() if other != name}

    def _make(self, name: str, source: SourceConfig, folder: Path) -> dict[str, Any]:
        from data.preparation import Preparation

        dev_rows = locate(name, source, self.config.mirror, dev=True) if source.dev_files else None
        around = dataclasses.replace(self._surroundings(), other_pairs=self._pairs_before(name, source))
        return Preparation(name, source, around).run(folder, _rows(name, source, self.config), dev_rows)

    def _pairs_before(self, name: str, source: SourceConfig) -> Any:
        """Keys of the pairs that earlier sets of the same side hold, where duplicates between sets are dropped."""
        import numpy as np

        from data.pair_files import read_keys

        earlier = [other for other in self._sets_before(name) if self.config.data.sources[other].side == source.side]
        keys = [read_keys(self.stage.path / "pair_keys" / f"{other}.parquet") for other in earlier]
        return np.unique(np.concatenate(keys)) if keys else np.empty(0, np.uint64)

    def _surroundings(self) -> Any:
        if self._around is None:
            from data.decontamination import TextIndex
            from data.evaluation_texts import forbidden_texts, read_benchmarks
            from data.pairs import Surroundings

            settings = self.config.data.decontamination
            forbidden = forbidden_texts(self.stage.path / "heldout", list(self.held_out_prints), EVALUATION_SAMPLES)
            texts = read_benchmarks(self.stage.path) if self.benchmarks_print else {}
            self._around = Surroundings(
                self.config.data, self.config.seed, forbidden, TextIndex.of(texts), mirror=self.config.mirror
            )
            if settings.near_duplicates and texts:
                from data.near_duplicates import NearIndex

                self._around.near = NearIndex(texts.items(), settings.threshold)
        return self._around

    def dev(self, lines: list[dict[str, Any]]) -> dict[str, int]:
        """Write the dev rows that occur in no other set's training; returns how many each set has."""
        from data.devsets import write_dev

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


STAGE = Stage(name="data", version=VERSION, settings=settings, inputs=inputs, build=build, in_place=True)
main = application(STAGE)

if __name__ == "__main__":
    main()
