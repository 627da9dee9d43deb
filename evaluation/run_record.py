"""What a run's artefact folders say, read for the report; whatever is not there is None or empty."""

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.artefact import Manifest, read_manifest

if TYPE_CHECKING:
    from evaluation.comparison import Difference

CHAIN = ("data", "init", "symmetric", "asymmetric", "joint", "merge", "evaluate")
SIDES = ("symmetric", "asymmetric", "joint")
MODELS = ("base", "init", "symmetric", "asymmetric", "joint", "merge")
SAMPLES = ("data", "samples")  # the end of the path of the mirror that is part of this repository
HELD_OUT = "held_out"  # a ledger's side of sets that are never trained on
OPTIONAL = ("joint",)  # shown only where it was run

Row = dict[str, str]


@dataclass(frozen=True)
class StageRecord:
    """One stage of the chain as its manifest tells it."""

    name: str
    folder: Path
    manifest: Manifest | None

    @property
    def status(self) -> str:
        """complete, running, failed or not run."""
        return self.manifest.status if self.manifest else "not run"

    @property
    def complete(self) -> bool:
        return self.status == "complete"


@dataclass(frozen=True)
class Score:
    """One line of scores.csv; bounds of the 95 % interval are None where the task has none."""

    model: str
    suite: str
    task: str
    metric: str
    value: float
    low: float | None
    high: float | None
    items: int | None


@dataclass(frozen=True)
class RunRecord:
    """All artefacts of one run."""

    folder: Path
    stages: dict[str, StageRecord]
    planned: dict[str, Any] = field(default_factory=dict)  # the config with which the report is made
    ledger: dict[str, Any] | None = None
    certificate: dict[str, Any] | None = None
    plans: dict[str, dict[str, Any]] = field(default_factory=dict)  # by side
    curves: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # by side, one entry a logged step
    weights: dict[str, Any] | None = None
    search: list[Row] = field(default_factory=list)
    simplex: str | None = None  # SVG
    scores: list[Score] = field(default_factory=list)
    differences: list["Difference"] = field(default_factory=list)

    @property
    def config(self) -> dict[str, Any]:
        """The config of the last stage that ran, or the one a run would have."""
        manifests = [stage.manifest for stage in self.stages.values() if stage.manifest]
        return manifests[-1].config if manifests else self.planned

    @property
    def training_sets(self) -> list[dict[str, Any]]:
        """The ledger's lines of the sets that are trained on."""
        return [entry for entry in (self.ledger or {}).get("sets", []) if entry["side"] != HELD_OUT]

    @property
    def held_out_sets(self) -> list[dict[str, Any]]:
        """The ledger's lines of the sets that are never trained on."""
        return [entry for entry in (self.ledger or {}).get("sets", []) if entry["side"] == HELD_OUT]

    def bundled(self, entry: dict[str, Any]) -> bool:
        """Whether a set's rows are samples of this repository in the upstream layout, not the set itself."""
        mirror = self.config.get("mirror")
        return mirror is not None and Path(mirror).parts[-2:] == SAMPLES and "mirror" in str(entry.get("revision"))

    def suite_kind(self, suite: str) -> str:
        """What kind of suite it is by the config of the run: retrieval, samples, encodechka or mteb."""
        suites = (self.config.get("evaluation") or {}).get("suite") or {}
        return str((suites.get(suite) or {}).get("kind", "unknown"))

    def certified(self, what: str) -> tuple[int, int] | None:
        """A size of init's certificate, vocabulary or parameters, before and after."""
        found = self.certificate or {}
        before, after = found.get(f"{what}_before"), found.get(f"{what}_after")
        return (before, after) if before is not None and after is not None else None

    def model_folder(self, name: str) -> Path:
        """Where the model of that name lies."""
        stage = self.stages[name].folder
        return stage if name == "init" else stage / "model"

    def outdated(self, name: str) -> list[str]:
        """Inputs of a stage that have been made anew, otherwise, since the stage ran."""
        manifests = {other: stage.manifest for other, stage in self.stages.items() if stage.manifest}
        return outdated_inputs(name, manifests)

    def difference(self, model: str, against: str, suite: str, task: str) -> "Difference | None":
        """The paired comparison of two models on a task's own score."""
        wanted = (model, against, suite, task, True)
        return next((d for d in self.differences if (d.model, d.against, d.suite, d.task, d.main) == wanted), None)

    def scored(self, model: str, suite: str, task: str, metric: str) -> Score | None:
        """A line of scores.csv, or None where there is none."""
        wanted = (model, suite, task, metric)
        return next((s for s in self.scores if (s.model, s.suite, s.task, s.metric) == wanted), None)


def outdated_inputs(name: str, manifests: Mapping[str, Manifest]) -> list[str]:
    """Inputs of a stage that have been made anew, otherwise, since the stage ran; those without manifest apart."""
    used = manifests[name].inputs if name in manifests else {}
    return [other for other, value in used.items() if other in manifests and manifests[other].fingerprint != value]


def read_run(folder: Path, planned: dict[str, Any] | None = None) -> RunRecord:
    """Everything that stands under `runs/<run>`; only complete stages contribute contents.

    `planned` is the config of a run of which nothing stands yet.
    """
    stages = {name: StageRecord(name, folder / name, read_manifest(folder / name)) for name in CHAIN}
    done = {name for name, stage in stages.items() if stage.complete}
    sides = [side for side in SIDES if side in done]
    merge, evaluate = folder / "merge", folder / "evaluate"
    scores = [_score(row) for row in _rows(evaluate / "scores.csv")] if "evaluate" in done else []
    compared = _rows(evaluate / "comparison.csv") if "evaluate" in done else []
    return RunRecord(
        folder=folder,
        stages={name: stage for name, stage in stages.items() if stage.manifest or name not in OPTIONAL},
        planned=planned or {},
        ledger=_json(folder / "data" / "ledger.json") if "data" in done else None,
        certificate=_json(folder / "init" / "certificate.json") if "init" in done else None,
        plans={side: plan for side in sides if (plan := _json(folder / side / "plan.json"))},
        curves={side: list(_lines(folder / side / "metrics.jsonl")) for side in sides},
        weights=_json(merge / "weights.json") if "merge" in done else None,
        search=_rows(merge / "search.csv") if "merge" in done else [],
        simplex=_text(merge / "simplex.svg") if "merge" in done else None,
        scores=scores,
        differences=_differences(compared, scores),
    )


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None


def _json(path: Path) -> dict[str, Any] | None:
    text = _text(path)
    return json.loads(text) if text else None


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    for line in (_text(path) or "").splitlines():
        if line.strip():
            yield json.loads(line)


def _rows(path: Path) -> list[Row]:
    text = _text(path)
    return list(csv.DictReader(text.splitlines())) if text else []


def _score(row: Row) -> Score:
    low, high = number(row.get("ci_low")), number(row.get("ci_high"))
    items = number(row.get("items"))
    value = float(row["score"]) if row["score"] else float("nan")
    names = (row["model"], row["suite"], row["task"], row["metric"])
    return Score(*names, value, low, high, int(items) if items is not None else None)


def _differences(rows: list[Row], scores: list[Score]) -> list["Difference"]:
    """Lines of comparison.csv; a task's own score is the one that scores.csv names first."""
    own: dict[tuple[str, str], str] = {}
    for score in scores:
        own.setdefault((score.suite, score.task), score.metric)
    return [_difference(row, own.get((row["suite"], row["task"])) == row["metric"]) for row in rows]


def _difference(row: Row, main: bool) -> "Difference":
    from evaluation.comparison import Difference

    model, against, suite, task, metric = (row[key] for key in ("model", "against", "suite", "task", "metric"))
    numbers = ("difference", "ci_low", "ci_high", "p_value", "p_holm")
    value, low, high, p, holm = (float(row[key] or "nan") for key in numbers)
    items = int(row["items"])
    return Difference(model, against, suite, task, metric, value, low, high, p, row["test"], items, main, holm)


def number(text: str | None) -> float | None:
    """A CSV field as a number; None where it is empty, absent, or NaN."""
    if not text or text.lower() == "nan":
        return None
    return float(text)
