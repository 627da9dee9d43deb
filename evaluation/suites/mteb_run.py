"""Running tasks of mteb: cached by the model's contents, resumed where they stopped, with per-item results."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mteb
from mteb.abstasks import AbsTask, AbsTaskRetrieval
from mteb.cache import ResultCache
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder, get_prompt_name
from mteb.models.sentence_transformer_wrapper import (
    MultiVectorWrapper,
    SentenceTransformerEncoderWrapper,
    SparseEncoderWrapper,
)
from sentence_transformers.util import dot_score, maxsim

from configs.schema.config import Config
from evaluation.encoder import Encoder
from evaluation.outcome import Outcome
from evaluation.scoring import Scorer
from evaluation.suites.heads import Heads, sparse_vectors, token_vectors
from evaluation.suites.mteb_outcome import Part, keep_query_scores, mteb_outcome, query_scores_path
from evaluation.suites.task import Task
from pipeline.core.console import quiet
from pipeline.core.errors import UserError, first_line

LOADED = 1024  # texts that mteb's loaders read at once; what is encoded at once is our encoder's matter
CORPUS_CHUNK = 50_000  # documents whose token vectors are held at once


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
        model = mteb_encoder(scorer, self.representation)
        return run_task(model, self.mteb_task(), self.metrics, results_folder(scorer.config))


def results_folder(config: Config) -> Path:
    """Where mteb's results are kept across runs, a folder for each of its versions, whose scores differ."""
    return Path(config.runs, "cache", "mteb", version("mteb"))


def run_task(model: Any, task: AbsTask, metrics: list[str], folder: Path) -> Outcome:
    """Evaluate `task`, or take up what `folder` holds of it.

    Args:
        model: an encoder whose `mteb_model_meta` names its contents (see `mteb_encoder`).
        task: one of mteb's, restricted to the splits and subsets that count.
        metrics: keys of mteb's result; empty: the task's main score.
        folder: holds results and predictions by model, all made with one version of mteb.

    Raises:
        UserError: the task's data can't be had, or mteb can't evaluate the task.
    """
    name = task.metadata.name
    predictions, cache = folder / "predictions" / model.mteb_model_meta.revision / name, ResultCache(folder)
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
            encode_kwargs={"batch_size": LOADED, "show_progress_bar": False},
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
        return DenseEncoder(scorer.encoder, scorer.key)
    kind = {"sparse": SparseHead, "multi_vector": MultiVectorHead}[representation]
    return kind(scorer.encoder, scorer.key, scorer.heads)


class DenseEncoder(SentenceTransformerEncoderWrapper):
    """mteb's wrapper, with the fingerprint as the model's revision, and our encoder's batches.

    mteb calls every local model by one name, and so would take one checkpoint's cached scores for another's.
    """

    def __init__(self, encoder: Encoder, fingerprint: str) -> None:
        with quiet():
            super().__init__(encoder.model)
        self.encoder = encoder
        self.mteb_model_meta = named_meta(self.mteb_model_meta, fingerprint)

    def encode(self, inputs: Any, *, task_metadata: Any, prompt_type: Any = None, **kwargs: Any) -> Any:
        """Embeddings [texts, width]; raises UserError where one is not finite."""
        return self.encoder.embed(texts_of(inputs), prompt_for(self.encoder, task_metadata, prompt_type))


class SparseHead(SparseEncoderWrapper):
    """The model's sparse weights for mteb."""

    def __init__(self, encoder: Encoder, fingerprint: str, heads: Heads) -> None:
        self.encoder, self.heads = encoder, heads
        self.model: Any = SimpleNamespace(similarity=dot_score)  # all that the wrapper asks its model for here
        self.mteb_model_meta = named_meta(ModelMeta.create_empty(), f"{fingerprint}-sparse-{heads.fingerprint[:16]}")

    def encode(self, inputs: Any, *, task_metadata: Any, prompt_type: Any = None, **kwargs: Any) -> Any:
        """A sparse tensor [texts, vocabulary]."""
        prompt = prompt_for(self.encoder, task_metadata, prompt_type)
        return sparse_vectors(self.encoder, self.heads, texts_of(inputs), prompt)


class MultiVectorHead(MultiVectorWrapper):
    """The model's token vectors for mteb, which sums MaxSim in float32."""

    def __init__(self, encoder: Encoder, fingerprint: str, heads: Heads) -> None:
        self.encoder, self.heads, self.corpus_chunk_size = encoder, heads, CORPUS_CHUNK
        self.model: Any = SimpleNamespace(similarity=maxsim, device=encoder.model.device)
        revision = f"{fingerprint}-multi_vector-{heads.fingerprint[:16]}"
        self.mteb_model_meta = named_meta(ModelMeta.create_empty(), revision)

    def _encode(self, inputs: Any, *, task_metadata: Any, prompt_type: Any = None, **kwargs: Any) -> Any:
        """A tensor [tokens, width] for each text."""
        prompt = prompt_for(self.encoder, task_metadata, prompt_type)
        return token_vectors(self.encoder, self.heads, texts_of(inputs), prompt)


def texts_of(inputs: Any) -> list[str]:
    """All texts of one of mteb's loaders."""
    return [text for batch in inputs for text in batch["text"]]


def prompt_for(encoder: Encoder, task_metadata: Any, prompt_type: Any) -> str:
    """The prompt that mteb's rules choose among the model's, else the model's own for the role."""
    own = {name: text for name, text in encoder.model.prompts.items() if text is not None}
    known, _ = AbsEncoder.validate_task_to_prompt_name(own, raise_for_invalid_keys=False)
    name = get_prompt_name(known, task_metadata, prompt_type)
    return own[name] if name else encoder.prompt(prompt_type.value if prompt_type else None)


def named_meta(meta: Any, fingerprint: str) -> Any:
    """mteb's description of a model with a name and revision that follow from its contents."""
    return meta.model_copy(update={"name": f"local/{fingerprint[:16]}", "revision": fingerprint})
