"""Running tasks of mteb: cached by the model's contents, resumed where they stopped, with per-item results."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mteb
import numpy as np
from mteb.abstasks import AbsTask, AbsTaskRetrieval
from mteb.cache import ResultCache
from mteb.models.sentence_transformer_wrapper import (
    MultiVectorWrapper,
    SentenceTransformerEncoderWrapper,
    SparseEncoderWrapper,
)

from configs.schema.config import Config
from evaluation.encoder import Embedder, require_finite
from evaluation.outcome import Outcome
from evaluation.scoring import Scorer
from evaluation.suites.heads import Heads, multi_vector_encoder, sparse_encoder
from evaluation.suites.mteb_outcome import Part, keep_query_scores, mteb_outcome, query_scores_path
from evaluation.suites.task import Task
from pipeline.core.console import quiet
from pipeline.core.errors import UserError, first_line


class MtebTask(Task):
    """A task of mteb's, by one of the model's representations: dense, sparse or multi_vector."""

    def __init__(
        self, suite: str, name: str, settings: Any, task: AbsTask, metrics: list[str], representation: str = "dense"
    ) -> None:
        super().__init__(suite, name, settings)
        self.task, self.metrics, self.representation = task, metrics, representation
        self.needs_heads = representation != "dense"

    def mteb_task(self) -> AbsTask:
        """mteb's object that is evaluated."""
        return self.task

    def score(self, scorer: Scorer) -> Outcome:
        devices = scorer.settings.devices
        encode = {"device": list(devices)} if len(devices) > 1 else {}
        model = mteb_encoder(scorer, self.representation)
        return run_task(model, self.mteb_task(), self.metrics, results_folder(scorer.config), encode)


def results_folder(config: Config) -> Path:
    """Where mteb's results are kept across runs, a folder for each of its versions, whose scores differ."""
    return Path(config.runs, "cache", "mteb", version("mteb"))


def run_task(model: Any, task: AbsTask, metrics: list[str], folder: Path, encode: dict[str, Any]) -> Outcome:
    """Evaluate `task`, or take up what `folder` holds of it.

    Args:
        model: an encoder whose `mteb_model_meta` names its contents (see `mteb_encoder`).
        task: one of mteb's, restricted to the splits and subsets that count.
        metrics: keys of mteb's result; empty: the task's main score.
        folder: holds results and predictions by model, all made with one version of mteb.
        encode: keyword arguments of sentence-transformers' encode, such as batch_size and device.

    Raises:
        UserError: the task's data can't be had, or mteb can't evaluate the task.
    """
    name = task.metadata.name
    predictions, cache = folder / "predictions" / model.mteb_model_meta.revision / name, ResultCache(folder)
    arguments: Any = {"batch_size": 32, "show_progress_bar": False, **encode}
    if not _is_whole(task, model, cache, predictions):
        shutil.rmtree(predictions, ignore_errors=True)
        cache.get_task_result_path(name, model.mteb_model_meta).unlink(missing_ok=True)
    keep_query_scores(task, predictions)
    with _explained(name), quiet():
        task.load_data()
        result = mteb.evaluate(
            model,
            task,
            cache=cache,
            encode_kwargs=arguments,
            prediction_folder=None if isinstance(task, AbsTaskRetrieval) else predictions,
            show_progress_bar=False,
            co2_tracker=False,
        ).task_results[0]
    return mteb_outcome(task, list(_parts(task, result.scores, predictions)), metrics)


def _is_whole(task: AbsTask, model: Any, cache: ResultCache, predictions: Path) -> bool:
    """Whether there are cached scores of this revision of the data with all predictions: kills cut mteb's files off."""
    try:
        cached = cache.load_task_result(task.metadata.name, model.mteb_model_meta)
        if cached is None or cached.dataset_revision != task.metadata.revision:
            return False
        for split, entries in cached.scores.items():
            for entry in entries:
                _predictions(task, predictions, entry["hf_subset"], split)
    except (OSError, KeyError, ValueError):
        return False
    return True


def _parts(task: AbsTask, scores: Mapping[str, list[Any]], folder: Path) -> Iterator[Part]:
    for split in task.eval_splits:
        for entry in sorted(scores[split], key=lambda entry: entry["hf_subset"]):
            subset = entry["hf_subset"]
            if subset in task.hf_subsets:
                found = _predictions(task, folder, subset, split)
                yield Part(subset, split, entry, found, _data(task, subset, split))


def _predictions(task: AbsTask, folder: Path, subset: str, split: str) -> Any:
    if isinstance(task, AbsTaskRetrieval):
        return json.loads(query_scores_path(folder, subset, split).read_text(encoding="utf-8"))
    path = folder / task.prediction_file_name
    return json.loads(path.read_text(encoding="utf-8"))[subset][split]


def _data(task: AbsTask, subset: str, split: str) -> Any:
    if isinstance(task, AbsTaskRetrieval):
        return None  # trec_eval's scores need no labels beside them
    data: Any = task.dataset
    return data[subset][split] if subset in data else data[split]


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """mteb's and the Hub's errors as one line."""
    try:
        yield
    except UserError:
        raise
    except (ConnectionError, OSError) as error:
        what = f"the task's data can't be had: {first_line(error)}"
        remedy = "connect to the Hub, or put the data set into mirror=<folder>/<data set id>"
        raise UserError(what, where=f"task {name}", remedy=remedy) from error
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        what = f"mteb can't evaluate the task: {first_line(error)}"
        raise UserError(what, where=f"task {name}", remedy="leave it out or mend its data") from error


def mteb_encoder(scorer: Scorer, representation: str) -> Any:
    """The model for mteb, named by its contents."""
    if representation == "dense":
        return CheckedEncoder(scorer.embedder, scorer.key)
    return encoder_with_head(scorer.embedder, scorer.heads, scorer.key, representation)


class CheckedEncoder(SentenceTransformerEncoderWrapper):
    """mteb's wrapper, with the fingerprint as the model's revision.

    mteb calls every local model by one name, and so would take one checkpoint's cached scores for another's.
    """

    def __init__(self, embedder: Embedder, fingerprint: str) -> None:
        with quiet():
            super().__init__(embedder.model)
        self.mteb_model_meta = named_meta(self.mteb_model_meta, fingerprint)
        self.folder = embedder.folder

    def encode(self, inputs: Any, **kwargs: Any) -> Any:
        """Embeddings [texts, width]; raises UserError where one is not finite."""
        embeddings = super().encode(inputs, **kwargs)
        require_finite([np.asarray(embeddings)], self.folder)
        return embeddings


def encoder_with_head(embedder: Embedder, heads: Heads, fingerprint: str, representation: str) -> Any:
    """The model's sparse weights, or its token vectors (of which mteb sums MaxSim in float32), for mteb."""
    wrap, make = {
        "sparse": (SparseEncoderWrapper, sparse_encoder),
        "multi_vector": (MultiVectorWrapper, multi_vector_encoder),
    }[representation]
    with quiet():
        wrapped: Any = wrap(make(embedder, heads))
    revision = f"{fingerprint}-{representation}-{heads.fingerprint[:16]}"
    wrapped.mteb_model_meta = named_meta(wrapped.mteb_model_meta, revision)
    return wrapped


def named_meta(meta: Any, fingerprint: str) -> Any:
    """mteb's description of a model with a name and revision that follow from its contents."""
    return meta.model_copy(update={"name": f"local/{fingerprint[:16]}", "revision": fingerprint})
