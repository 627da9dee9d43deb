"""Settings of evaluation: which models are scored on which suites, and how they are compared."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field

from configs.schema.rules import name_problem

KINDS = ("retrieval", "samples", "encodechka", "mteb")
PROTOCOLS = ("leaderboard", "model")
REPRESENTATIONS = ("dense", "sparse", "multi_vector")
CHAIN = ("base", "init", "symmetric", "asymmetric", "merge")


@dataclass
class MtebTaskConfig:
    """One task of mteb in a suite; empty lists take what the task itself evaluates."""

    splits: list[str] = field(default_factory=list)  # several: the score is the mean of theirs
    subsets: list[str] = field(default_factory=list)  # such as ru; several: the score is the mean of theirs
    metrics: list[str] = field(default_factory=list)  # keys of mteb's result, the task's own score first


@dataclass
class SuiteConfig:
    """A set of tasks that is scored together; `kind` says which of the other fields count."""

    kind: str = "mteb"  # retrieval (held-out sets of stage data), samples (bundled), encodechka, mteb
    sets: dict[str, str] = field(default_factory=dict)  # retrieval: task -> set under data/heldout
    protocol: str = "leaderboard"  # encodechka: leaderboard (best of the pooled variants), model (its own pooling)
    benchmark: str | None = None  # mteb: name of a benchmark whose tasks are taken, such as MTEB(rus, v1.1)
    languages: list[str] = field(default_factory=list)  # mteb: subsets of multilingual tasks, such as rus
    tasks: dict[str, MtebTaskConfig] = field(default_factory=dict)  # mteb: tasks, or exceptions of the benchmark's
    representations: list[str] = field(default_factory=lambda: ["dense"])  # mteb retrieval: also sparse, multi_vector

    def problems(self) -> Iterator[tuple[str, str]]:
        """Impossible values, as (field, what is wrong)."""
        if self.kind not in KINDS:
            yield "kind", f"must be one of {', '.join(KINDS)}"
        if self.protocol not in PROTOCOLS:
            yield "protocol", f"must be one of {', '.join(PROTOCOLS)}"
        if self.kind == "retrieval" and not self.sets:
            yield "sets", "must name at least one held-out set"
        for name in [*self.sets, *self.sets.values()]:
            if problem := name_problem(name):
                yield "sets", problem
        if self.kind == "mteb" and not self.tasks and not self.benchmark:
            yield "tasks", "a suite of mteb needs tasks or a benchmark"
        for name in set(self.representations) - set(REPRESENTATIONS):
            yield "representations", f"{name} is not one of {', '.join(REPRESENTATIONS)}"


@dataclass
class ReportConfig:
    """What the report compares the run with, beside the figures that the repository holds."""

    card: str | None = None  # Hub id of the published card whose usage example is scored; null: not run
    revision: str = "0cc6cfe48e260fb0474c753087a69369e88709ae"  # of `card`


@dataclass
class PublishConfig:
    """Where the merged model goes, and what its card says that no artefact knows."""

    repo: str | None = None  # Hub id that is uploaded to, such as organisation/name
    private: bool = True  # of a repository that does not exist yet
    dry_run: bool = True  # write the folder and show it; false: upload it too
    licence: str = "apache-2.0"  # of the model, as the Hub spells it; the data's terms stand in the card's table
    onnx: bool = False  # also export to ONNX and check that against torch (extra "onnx")

    def problems(self) -> Iterator[tuple[str, str]]:
        """Impossible values, as (field, what is wrong)."""
        if not self.dry_run and not self.repo:
            yield "repo", "must be given to upload, as organisation/name"
        if self.repo is not None and self.repo.count("/") != 1:
            yield "repo", "must be organisation/name"


@dataclass
class EvaluationConfig:
    """What is scored, and on what."""

    suites: list[str] = field(default_factory=list)  # names under `suite`, in this order
    suite: dict[str, SuiteConfig] = field(default_factory=dict)  # every suite that can be asked for
    tasks: list[str] = field(default_factory=list)  # only these tasks of the suites; empty: all
    chain: list[str] = field(default_factory=lambda: list(CHAIN))  # this run's models, as far as they are made
    models: list[str] = field(default_factory=list)  # further ones: folders, or Hub ids, with @<revision> if wanted
    # Of the encoder: fp32 or bf16; pooling and scores are always float32. On two cores with AMX bf16 takes half of the
    # time, and changes no encodechka score of the demo's base by more than 0.002.
    precision: str = "fp32"
    resamples: int = 10_000  # of the bootstrap and of the permutation test
    confidence: float = 0.95  # of the intervals
    encodechka: str | None = None  # folder of its data files; null: $ENCODECHKA_DATA_PATH, else downloaded once
    published: str | None = field(default=None, metadata={"result": False})  # calibration: whose figures are compared
    heads: str | None = None  # folder with sparse_linear.pt and colbert_linear.pt for models without their own
    embeddings: str | None = field(default=None, metadata={"result": False})  # folder that keeps embeddings
    devices: list[str] = field(default_factory=list, metadata={"result": False})  # empty: the first GPU, else CPU
    batch_tokens: int | None = field(default=None, metadata={"result": False})  # padded, in a pass; null: by the device
    workers: int | None = field(default=None, metadata={"result": False})  # processes for classifiers; null: cores
    report: ReportConfig = field(default_factory=ReportConfig, metadata={"result": False})
    publish: PublishConfig = field(default_factory=PublishConfig, metadata={"result": False})

    @property
    def encodechka_folder(self) -> str | None:
        """Where encodechka's data files are, as far as configured."""
        return self.encodechka or os.environ.get("ENCODECHKA_DATA_PATH")

    def problems(self) -> Iterator[tuple[str, str]]:
        """Impossible values, as (field, what is wrong)."""
        for name in self.suites:
            if name not in self.suite:
                yield "suites", f"there is no suite {name}; known: {', '.join(sorted(self.suite)) or 'none'}"
        if len(set(self.suites)) < len(self.suites):
            yield "suites", "names a suite twice"
        for name in set(self.chain) - set(CHAIN):
            yield "chain", f"{name} is not one of {', '.join(CHAIN)}"
        if self.precision not in ("fp32", "bf16"):
            yield "precision", "must be fp32 or bf16"
        if self.resamples < 100:
            yield "resamples", "must be at least 100"
        if not 0.5 <= self.confidence < 1:
            yield "confidence", "must be at least 0.5 and below 1"
        if self.batch_tokens is not None and self.batch_tokens < 1:
            yield "batch_tokens", "must be at least 1"
        if self.workers is not None and self.workers < 1:
            yield "workers", "must be at least 1"
