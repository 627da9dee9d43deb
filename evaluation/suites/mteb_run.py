"""Runs mteb's tasks: a new task object for each model, per-item results cached by the model's contents."""

import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mteb
import numpy as np
import torch
from datasets.exceptions import DatasetGenerationError, DatasetsError
from filelock import FileLock
from mteb.abstasks import AbsTask, AbsTaskRetrieval
from mteb.cache import ResultCache
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder, get_prompt_name
from mteb.models.hybrid_wrappers import HybridSearch
from mteb.models.sentence_transformer_wrapper import (
    MultiVectorWrapper,
    SentenceTransformerEncoderWrapper,
    SparseEncoderWrapper,
)
from sentence_transformers.util import dot_score
from sentence_transformers.util.similarity import mean_maxsim

from configs.schema.config import Config
from evaluation.encoder import Encoder
from evaluation.outcome import SCORE_VERSION, Outcome, joined
from evaluation.results import DENSE, HYBRID, MULTI_VECTOR, SPARSE
from evaluation.scoring import Scorer
from evaluation.suites.heads import WEIGHTS, sparse_vectors, token_vectors
from evaluation.suites.mteb_outcome import Part, keep_query_scores, mteb_outcome, parts_of_task, read_labels_once
from evaluation.suites.task import Task
from pipeline.core.artefact import PARTIAL, files_under, json_sha256, read_json, remove, replacing
from pipeline.core.console import quiet
from pipeline.core.errors import UserError, first_line
from pipeline.core.heads import Heads

LOADED = 1024  # texts that mteb's loaders read at once; our encoder makes its own batches
HELD_TOKENS = 2_000_000  # of documents with vectors in memory at once: 8 GB at 1,024 dimensions
TOKEN_CHARACTERS = 3  # a lower bound


class MtebTask(Task):
    """A task of mteb's in one or more modes: dense, sparse, multi_vector, hybrid."""

    def __init__(
        self, suite: str, name: str, settings: Any, task: AbsTask, metrics: list[str], modes: Sequence[str] = (DENSE,)
    ) -> None:
        super().__init__(suite, name, [settings, version("mteb")])
        self.task, self.metrics, self.modes = task, metrics, modes
        self.needs_heads = set(modes) != {DENSE}

    def score(self, scorer: Scorer) -> Outcome:
        folder, force = results_folder(scorer.config), scorer.config.force
        found = ((mode, mteb_encoder(scorer, mode)) for mode in self.modes)
        return joined({mode: run_task(model, self.task, self.metrics, folder, force) for mode, model in found})


def results_folder(config: Config) -> Path:
    """Where mteb's results are kept across runs, in a folder per mteb version, as scores differ between versions."""
    return Path(config.runs, "cache", "mteb", version("mteb"))


def run_task(model: Any, task: AbsTask, metrics: list[str], folder: Path, force: bool = False) -> Outcome:
    """Evaluate a new object of the task, or reuse its results in `folder` without reading its data.

    Args:
        model: an encoder whose `mteb_model_meta` identifies its contents (see `mteb_encoder`).
        task: one of mteb's, restricted to the splits and subsets to score.
        metrics: keys of mteb's result; empty: the task's main score.
        folder: holds tasks' results by model, and mteb's own files, all from one version of mteb.
        force: evaluate even if there are results.

    Raises:
        UserError: the task's data isn't available, or mteb can't evaluate the task.
    """
    chosen = [SCORE_VERSION, task.metadata.dataset, list(task.eval_splits), list(task.hf_subsets)]
    key = json_sha256(chosen)[:16]
    kept = folder / "parts" / model.mteb_model_meta.revision / f"{task.metadata.name}--{key}.json"
    kept.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{kept}.lock"):  # if another run scores the same model, waits for its scores
        parts = None if force else _read(kept)
        if parts is None:
            parts = _evaluated(model, renewed(task), folder, kept)
    return mteb_outcome(task.metadata, parts, metrics)


def renewed(task: AbsTask) -> AbsTask:
    """The same task as a new object.

    mteb seeds a task's random numbers when the object is created, and draws from them in each evaluation; ours leaves
    hooks in it. With one object for all models, a score would depend on which models were scored before.
    """
    made = type(task)()
    made.metadata, made.hf_subsets, made._eval_splits = task.metadata, list(task.hf_subsets), task._eval_splits
    made.dataset, made.data_loaded = task.dataset, task.data_loaded
    return made


def _evaluated(model: Any, task: AbsTask, folder: Path, kept: Path) -> list[Part]:
    """Have mteb evaluate the task, and store its parts at `kept` and its result among mteb's files."""
    name, scratch = task.metadata.name, kept.with_suffix(PARTIAL)
    remove(scratch)
    scratch.mkdir()
    try:
        keep_query_scores(task, scratch)
        read_labels_once(task)
        with _explained(name), quiet():
            task.load_data()  # else mteb would unload it before the labels are read
            result = mteb.evaluate(
                model,
                task,
                cache=ResultCache(scratch),
                encode_kwargs={"batch_size": LOADED, "show_progress_bar": False},
                prediction_folder=None if isinstance(task, AbsTaskRetrieval) else scratch,
                show_progress_bar=False,
                co2_tracker=False,
            ).task_results[0]
            parts = list(parts_of_task(task, result.scores, scratch))
        with FileLock(kept.parent / ".lock"):  # all tasks of a model write its model_meta.json
            for file in files_under(scratch / "results"):
                with replacing(folder / file.relative_to(scratch)) as target:
                    shutil.copyfile(file, target)
    finally:
        remove(scratch)
    with replacing(kept) as target:
        text = json.dumps([vars(part) for part in parts], ensure_ascii=False, default=lambda number: number.item())
        target.write_text(text, encoding="utf-8")
    return [Part(**part) for part in json.loads(text)]  # as written, so that a reused score is bit-identical


def _read(kept: Path) -> list[Part] | None:
    try:
        return [Part(**part) for part in read_json(kept)]
    except (OSError, ValueError, TypeError):
        return None


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turns mteb's and the Hub's errors into one line."""
    try:
        yield
    except (OSError, DatasetsError) as error:
        cause = error.__cause__ if isinstance(error, DatasetGenerationError) else None  # its own message says nothing
        what = f"the task's data isn't available: {first_line(cause or error)}"
        remedy = "connect to the Hub, or put the data set into mirror=<folder>/<data set id>"
        raise UserError(what, where=f"task {name}", remedy=remedy) from error
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        what = f"mteb can't evaluate the task: {first_line(error)}"
        raise UserError(what, where=f"task {name}", remedy="leave it out or fix its data") from error


def mteb_encoder(scorer: Scorer, mode: str) -> Any:
    """The model in one of its modes for mteb, named by its contents."""
    if mode == DENSE:
        return DenseEncoder(scorer.encoder, scorer.key)
    kind: Any = {SPARSE: SparseHead, MULTI_VECTOR: MultiVectorHead, HYBRID: hybrid_search}[mode]
    return kind(scorer.encoder, f"{scorer.key}-{mode}-{scorer.heads.fingerprint[:16]}", scorer.heads)


class DenseEncoder(SentenceTransformerEncoderWrapper):
    """mteb's wrapper, with the fingerprint as the model's revision, and our encoder's batches.

    mteb gives all local models one name, and so would reuse one checkpoint's cached scores for another.
    """

    def __init__(self, encoder: Encoder, fingerprint: str) -> None:
        with quiet():
            super().__init__(encoder.model)
        self.encoder = encoder
        self.mteb_model_meta = named_meta(self.mteb_model_meta, fingerprint)

    def encode(self, inputs: Any, *, task_metadata: Any, prompt_type: Any = None, **kwargs: Any) -> Any:
        """Embeddings [texts, width]; raises UserError if one is not finite."""
        return self.encoder.embed(texts_of(inputs), prompt_for(self.encoder, task_metadata, prompt_type))


class SparseHead(SparseEncoderWrapper):
    """The model's sparse weights for mteb."""

    def __init__(self, encoder: Encoder, fingerprint: str, heads: Heads) -> None:
        self.encoder, self.heads = encoder, heads
        self.model: Any = SimpleNamespace(similarity=dot_score)  # all that the wrapper uses of its model here
        self.mteb_model_meta = named_meta(ModelMeta.create_empty(), fingerprint)

    def encode(self, inputs: Any, *, task_metadata: Any, prompt_type: Any = None, **kwargs: Any) -> Any:
        """A sparse tensor [texts, vocabulary]."""
        prompt = prompt_for(self.encoder, task_metadata, prompt_type)
        found = sparse_vectors(self.encoder, self.heads, texts_of(inputs), prompt).tocoo()
        places, values = torch.from_numpy(np.stack(found.coords)), torch.from_numpy(found.data)
        made = torch.sparse_coo_tensor(places, values, found.shape)
        return made.coalesce().to(self.encoder.model.device)


class MultiVectorHead(MultiVectorWrapper):
    """The model's token vectors for mteb, which sums MaxSim in float32; scores are per query token."""

    def __init__(self, encoder: Encoder, fingerprint: str, heads: Heads) -> None:
        self.encoder, self.heads = encoder, heads
        self.model: Any = SimpleNamespace(similarity=mean_maxsim, device=encoder.model.device)
        self.mteb_model_meta = named_meta(ModelMeta.create_empty(), fingerprint)

    def index(self, corpus: Any, **kwargs: Any) -> None:
        """Keep the corpus; documents are encoded and scored in chunks of about `HELD_TOKENS` tokens."""
        most = self.encoder.model.max_seq_length or math.inf
        tokens = sum(min(len(text) / TOKEN_CHARACTERS + 2, most) for text in corpus["text"])
        self.corpus_chunk_size = max(1, int(HELD_TOKENS * len(corpus) / tokens))
        super().index(corpus, **kwargs)

    def _encode(self, inputs: Any, *, task_metadata: Any, prompt_type: Any = None, **kwargs: Any) -> Any:
        """A tensor [tokens, width] for each text."""
        prompt = prompt_for(self.encoder, task_metadata, prompt_type)
        return token_vectors(self.encoder, self.heads, texts_of(inputs), prompt)


def hybrid_search(encoder: Encoder, fingerprint: str, heads: Heads) -> HybridSearch:
    """The weighted sum of the three modes' scores; a document that is not among a mode's best gets 0 for it."""

    def summed(scores: Sequence[Mapping[str, float]], weights: Sequence[float]) -> dict[str, float]:
        found: dict[str, float] = {}
        for mode, weight in zip(scores, weights, strict=True):
            for document, score in mode.items():
                found[document] = found.get(document, 0.0) + weight * score
        return found

    modes: list[Any] = [DenseEncoder(encoder, fingerprint)]
    modes += [kind(encoder, fingerprint, heads) for kind in (SparseHead, MultiVectorHead)]
    search = HybridSearch(modes, WEIGHTS, fusion_strategy=summed)
    search.mteb_model_meta = named_meta(search.mteb_model_meta, fingerprint)
    return search


def texts_of(inputs: Any) -> list[str]:
    """All texts of one of mteb's loaders."""
    return [text for batch in inputs for text in batch["text"]]


def prompt_for(encoder: Encoder, task_metadata: Any, prompt_type: Any) -> str:
    """The model's prompt that mteb's rules choose, else its own for the role."""
    own = {name: text for name, text in encoder.model.prompts.items() if text is not None}
    known, _ = AbsEncoder.validate_task_to_prompt_name(own, raise_for_invalid_keys=False)
    name = get_prompt_name(known, task_metadata, prompt_type)
    return own[name] if name else encoder.prompt(prompt_type.value if prompt_type else None)


def named_meta(meta: Any, fingerprint: str) -> Any:
    """mteb's description of a model with a name and revision derived from its contents."""
    return meta.model_copy(update={"name": f"local/{fingerprint[:16]}", "revision": fingerprint})
