"""Settings of evaluation: which models are scored on which suites, and how they are compared."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from configs.schema.data import DATA_SIDES
from configs.schema.rules import setting

MODES = ("dense", "sparse", "multi_vector", "hybrid")
EXPORTS = ("onnx", "onnx-int8", "openvino-int8", "static")
DEVICE = re.compile(r"cpu|mps|(cuda|xpu|npu|hpu)(:\d+)?")  # torch's names
CHAIN_MODELS = ("base", "init", *DATA_SIDES, "merge")


@dataclass
class MtebTaskConfig:
    """One mteb task in a suite; empty lists select the task's own defaults."""

    splits: list[str] = setting([])  # several: the score is their mean
    subsets: list[str] = setting([])  # such as ru; several: the score is their mean
    metrics: list[str] = setting([])  # keys of mteb's result, the task's main score first


@dataclass
class SuiteConfig:
    """A set of tasks that are scored together; `kind` determines which of the other fields apply."""

    # retrieval: held-out sets of stage data; samples: the bundled ones; vectors: held-out sets and the bundled STS with
    # shortened and quantised embeddings.
    kind: str = setting("mteb", choices=("retrieval", "samples", "encodechka", "mteb", "vectors"))
    sets: dict[str, str] = setting({}, name=True)  # retrieval, vectors: task -> set under data/heldout
    # vectors: shorter lengths, in addition to the full one; of one dimension, all cosines would be 1 or -1.
    dimensions: list[int] = setting([], least=2, distinct=True)
    # vectors: of a component, in addition to float32
    precisions: list[str] = setting([], choices=("int8", "binary"), distinct=True)
    # encodechka: leaderboard (best of the pooled variants), or model (its own pooling).
    protocol: str = setting("leaderboard", choices=("leaderboard", "model"))
    benchmark: str | None = None  # mteb: a benchmark that provides the tasks, such as MTEB(rus, v1.1)
    languages: list[str] = setting([])  # mteb, without a benchmark: subsets of multilingual tasks, such as rus
    tasks: dict[str, MtebTaskConfig] = setting({})  # mteb: tasks, or exceptions to the benchmark's
    # mteb: modes in which retrieval tasks are scored; all but dense need heads, and hybrid is their weighted sum.
    representations: list[str] = setting(["dense"], choices=MODES, distinct=True)

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.kind == "retrieval" and not self.sets:
            yield "sets", "must name at least one held-out set"
        if not self.representations:
            yield "representations", "must name at least one"
        if self.kind == "mteb" and not self.tasks and not self.benchmark:
            yield "tasks", "a suite of mteb needs tasks or a benchmark"
        if self.benchmark and self.languages:
            yield "languages", "must be empty with a benchmark, which has its own; set subsets under tasks"


@dataclass
class ReportConfig:
    """What the report compares the run with, in addition to the figures stored in the repository."""

    card: str | None = None  # Hub id of the published card whose usage example is scored; null: none
    revision: str = "0cc6cfe48e260fb0474c753087a69369e88709ae"  # of `card`


@dataclass
class ExportConfig:
    """Further formats of the final model: each is checked against torch, and uploaded with the model."""

    formats: list[str] = setting(["onnx", "onnx-int8"], choices=EXPORTS, distinct=True)  # they need the extra "export"

    def problems(self) -> Iterator[tuple[str, str]]:
        if not self.formats:
            yield "formats", "must name at least one"


@dataclass
class PublishConfig:
    """Where the merged model is uploaded, and what its card states that is in no artefact."""

    repo: str | None = None  # Hub id to upload to, such as organisation/name
    private: bool = True  # for a repository that does not exist yet
    dry_run: bool = True  # only write and show the folder; false: also upload it
    # The model's, as spelled on the Hub; null: apache-2.0, or other with a list if training sets restrict its use.
    licence: str | None = None

    def problems(self) -> Iterator[tuple[str, str]]:
        if not self.dry_run and not self.repo:
            yield "repo", "must be given to upload, as organisation/name"
        if self.repo is not None and self.repo.count("/") != 1:
            yield "repo", "must be organisation/name"


@dataclass
class EvaluationConfig:
    """What is scored, and on what."""

    suites: list[str] = setting([], distinct=True)  # names under `suite`, in this order
    suite: dict[str, SuiteConfig] = setting({})  # all available suites
    tasks: list[str] = setting([])  # only these tasks of the suites; empty: all
    without: list[str] = setting([])  # leave out these tasks of the suites
    chain: list[str] = setting(list(CHAIN_MODELS), choices=CHAIN_MODELS)  # this run's models, those that are complete
    models: list[str] = setting([])  # further models: folders, or Hub ids with an optional @<revision>
    # Of the encoder; pooling and scores are always float32. On two cores with native bfloat16, bf16 takes half the time
    # and changes no encodechka score of the demo's base by more than 0.002.
    precision: str = setting("fp32", choices=("fp32", "bf16"))
    resamples: int = setting(10_000, least=100)  # of the bootstrap and of the permutation test
    encodechka: str | None = None  # folder of its data files; null: $ENCODECHKA_DATA_PATH, else downloaded once
    published: str | None = setting(None, result=False)  # calibration: the model whose published figures are compared
    embeddings: str | None = setting(None, result=False)  # folder for cached embeddings
    # Models and tasks are distributed over them; empty: every GPU of the machine, else its CPU.
    devices: list[str] = setting([], result=False)
    workers: int | None = setting(None, least=1, result=False)  # processes for classifiers; null: cores / devices
    report: ReportConfig = field(default_factory=ReportConfig, metadata={"result": False})
    publish: PublishConfig = field(default_factory=PublishConfig, metadata={"result": False})

    @property
    def encodechka_folder(self) -> str | None:
        """The folder of encodechka's data files, if configured."""
        return self.encodechka or os.environ.get("ENCODECHKA_DATA_PATH")

    def problems(self) -> Iterator[tuple[str, str]]:
        for name in self.suites:
            if name not in self.suite:
                yield "suites", f"there is no suite {name}; known: {', '.join(sorted(self.suite)) or 'none'}"
        for name in self.devices:
            if not DEVICE.fullmatch(name):
                yield "devices", f"{name!r} is no device; name them as cpu, cuda:0 or mps"
