"""The tasks of a suite, each ready to be scored with a model."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from configs.schema.config import Config
from configs.schema.evaluation import SuiteConfig
from evaluation.outcome import Outcome
from pipeline.core.artefact import StageFolder, file_sha256

SAMPLES = Path(__file__).parent / "samples"


@dataclass(frozen=True)
class Resources:
    """What a task may use of the model being scored; both are made when first asked for."""

    embedder: Callable[[], Any]  # -> evaluation.embedding.Embedder
    mteb_encoder: Callable[[str], Any]  # dense, sparse or multi_vector -> an encoder for mteb
    mteb_folder: Path  # results of all models by one version of mteb
    heads: Callable[[], Any]  # -> evaluation.heads.Heads of the model
    reference: Callable[[], tuple[Any, Any]]  # -> the base's embedder and heads
    encode: dict[str, Any] = field(default_factory=dict)  # keyword arguments of sentence-transformers' encode
    workers: int = 1


@dataclass(frozen=True)
class Task:
    """One task of a suite. `settings` holds what its scores depend on beside the model."""

    suite: str
    name: str
    settings: Any
    run: Callable[[Resources], Outcome]
    needs_heads: bool = False  # bge-m3's sparse and multi-vector heads

    @property
    def key(self) -> str:
        """`<suite>/<task>`, also the path of its predictions below a model's."""
        return f"{self.suite}/{self.name}"


def tasks_of(name: str, config: Config, stage: StageFolder) -> list[Task]:
    """The tasks of a configured suite, in order; raises UserError where their data is missing or wrong."""
    suite = config.evaluation.suite[name]
    makers: dict[str, Callable[[str, SuiteConfig, Config, StageFolder], list[Task]]] = {
        "retrieval": _retrieval_tasks,
        "samples": _sample_tasks,
        "encodechka": _encodechka_tasks,
        "mteb": _mteb_tasks,
    }
    return makers[suite.kind](name, suite, config, stage)


def _retrieval_tasks(name: str, suite: SuiteConfig, config: Config, stage: StageFolder) -> list[Task]:
    from evaluation.retrieval import read_retrieval_set, score_retrieval

    tasks = []
    for task, held_out in suite.sets.items():
        path = stage.input("data") / "heldout" / f"{held_out}.parquet"

        def run(r: Resources, data: Any = read_retrieval_set(path)) -> Outcome:  # noqa: B008
            return score_retrieval(data, r.embedder())

        tasks.append(Task(name, task, file_sha256(path), run))
    return tasks


def _sample_tasks(name: str, suite: SuiteConfig, config: Config, stage: StageFolder) -> list[Task]:
    from evaluation.mteb_tasks import SAMPLE_TASKS, sample_task
    from evaluation.russian_mteb import run_task
    from evaluation.samples import ENCODECHKA_SAMPLES, read_samples

    def digests(files: tuple[str, ...]) -> list[str]:
        return [file_sha256(SAMPLES / f"{file}.jsonl") for file in files]

    tasks = []
    for task, (score, files) in ENCODECHKA_SAMPLES.items():

        def score_vectors(r: Resources, score: Any = score, files: tuple[str, ...] = files) -> Outcome:
            return score(read_samples(files), r.embedder())

        tasks.append(Task(name, task, digests(files), score_vectors))
    for task, (_, files) in SAMPLE_TASKS.items():

        def run(r: Resources, task: str = task) -> Outcome:
            return run_task(r.mteb_encoder("dense"), sample_task(task), [], r.mteb_folder, r.encode)

        tasks.append(Task(name, task, digests(files), run))
    return tasks


def _encodechka_tasks(name: str, suite: SuiteConfig, config: Config, stage: StageFolder) -> list[Task]:
    from evaluation.encodechka.files import COMMIT, DataFiles
    from evaluation.encodechka.tasks import TASKS, Vectors

    files = DataFiles(config.evaluation.encodechka_folder, Path(config.runs, "cache", "encodechka"))
    tasks = []
    for task, score in TASKS.items():

        def run(r: Resources, score: Any = score) -> Outcome:
            return score(files, Vectors(r.embedder(), suite.protocol, r.workers))

        tasks.append(Task(name, task, {"data": COMMIT, "protocol": suite.protocol}, run))
    return tasks


def _mteb_tasks(name: str, suite: SuiteConfig, config: Config, stage: StageFolder) -> list[Task]:
    from evaluation.mteb_tasks import hub_task, suite_tasks
    from evaluation.russian_mteb import run_task

    tasks = []
    for task, special in suite_tasks(suite).items():
        for kind in suite.representations:
            made = hub_task(task, suite, special, config.mirror)

            def run(r: Resources, made: Any = made, kind: str = kind, special: Any = special) -> Outcome:
                return run_task(r.mteb_encoder(kind), made, special.metrics, r.mteb_folder, r.encode)

            settings = {"task": special, "languages": suite.languages, "data": made.metadata.dataset}
            full_name = task if kind == "dense" else f"{task}.{kind}"
            tasks.append(Task(name, full_name, settings, run, needs_heads=kind != "dense"))
    return [*tasks, _drift_task(name)] if set(suite.representations) - {"dense"} else tasks


def _drift_task(name: str) -> Task:
    """How far the heads' outputs on the bundled texts are from the base's."""
    from evaluation.drift import drift_outcome
    from evaluation.samples import read_samples

    files = ("sts", "long_documents")
    rows = read_samples(files)
    texts = [row[key] for row in rows["sts"] for key in ("sentence1", "sentence2")]
    texts += [row["document"] for row in rows["long_documents"]]

    def run(r: Resources) -> Outcome:
        return drift_outcome(r.embedder(), r.heads(), *r.reference(), texts)

    return Task(name, "drift", [file_sha256(SAMPLES / f"{file}.jsonl") for file in files], run, needs_heads=True)
