"""What smaller vectors cost: embeddings truncated to fewer dimensions, and stored in 8 bits or 1 bit per dimension.

Each text is encoded once; every form is made from that. Documents are stored (the second sentence of a pair); queries
are truncated too, but stay float32, as when a quantised index is searched and its best hits are rescored.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from sentence_transformers.util import quantize_embeddings

from configs.schema.config import Config
from configs.schema.evaluation import SuiteConfig
from data.artefact import PairSet, held_out_file, read_dev_sets, read_pair_set, set_files
from evaluation.outcome import ITEM, Outcome
from evaluation.scoring import Scorer
from evaluation.suites.encodechka.predictors import similarity_task
from evaluation.suites.retrieval import RetrievalSet, outcome_of, read_retrieval_set
from evaluation.suites.sample_files import read_samples, sample_digests
from evaluation.suites.task import Task
from pipeline.core.artefact import StageFolder, file_sha256
from pipeline.core.embedding import DOCUMENT, QUERY, l2_normalize, text_key
from pipeline.core.errors import UserError

CALIBRATION = 300  # texts of the mixture; their extremes bound the 256 steps of int8
FLOAT, INT8, BINARY = "float32", "int8", "binary"
BITS = {FLOAT: 32, INT8: 8, BINARY: 1}  # per dimension
METRIC = "ndcg_at_10"  # of retrieval
STS = "sts"  # the bundled pairs of sentences


@dataclass(frozen=True)
class Form:
    """A way to store vectors: their first `dimensions` (None: all), scaled to length 1, in one precision."""

    dimensions: int | None = None
    precision: str = FLOAT

    @property
    def name(self) -> str:
        """Such as full, 256, int8, 256-int8."""
        parts = [] if self.dimensions is None else [str(self.dimensions)]
        parts += [] if self.precision == FLOAT else [self.precision]
        return "-".join(parts) or "full"

    def bytes_of(self, width: int) -> int:
        """Bytes of one stored vector of a model with `width` dimensions."""
        return math.ceil((self.dimensions or width) * BITS[self.precision] / 8)

    def cut(self, vectors: np.ndarray) -> np.ndarray:
        """Vectors [texts, width] truncated to [texts, dimensions], of length 1."""
        return l2_normalize(vectors[:, : self.dimensions])

    def stored(self, vectors: np.ndarray, calibration: np.ndarray) -> np.ndarray:
        """Vectors [texts, width] as an index stores them, decoded to [texts, dimensions] of length 1.

        An int8 code is decoded to the middle of its step; `calibration` [texts, width] sets each dimension's range.
        """
        kept = self.cut(vectors)
        if self.precision == INT8:
            ranged = self.cut(calibration)
            low, high = ranged.min(axis=0), ranged.max(axis=0)
            codes = quantize_embeddings(kept, "int8", ranges=np.stack([low, high]))
            kept = low + (np.asarray(codes, np.float32) + 128.5) * (high - low) / 255
        elif self.precision == BINARY:
            bits = np.unpackbits(np.asarray(quantize_embeddings(kept, "ubinary")), axis=1, count=kept.shape[1])
            kept = bits * np.float32(2) - 1
        return Form().cut(kept)


def tasks(suite: str, config: Config, stage: StageFolder) -> list[Task]:
    """Every held-out set and the bundled pairs, in every form."""
    settings, data = config.evaluation.suite[suite], stage.inputs["data"]
    roles = (QUERY, DOCUMENT)
    ranges = {role: calibration_texts(data, role) if INT8 in settings.precisions else [] for role in roles}
    found: list[Task] = []
    for name, held_out_name in settings.sets.items():
        read, contents = read_retrieval_set(data, held_out_name), file_sha256(held_out_file(data, held_out_name))
        found += [StoredRetrieval(read, suite, name, contents, form, ranges[DOCUMENT]) for form in forms(settings)]
    return [*found, *(StoredPairs(suite, STS, sample_digests(STS), form, ranges[QUERY]) for form in forms(settings))]


def forms(settings: SuiteConfig) -> list[Form]:
    """Full vectors first, then all others."""
    return [Form(cut, kind) for kind, cut in product([FLOAT, *settings.precisions], [None, *settings.dimensions])]


def task_names(settings: SuiteConfig) -> list[str]:
    """Names of a suite's tasks."""
    return [f"{name}-{form.name}" for name in (*settings.sets, STS) for form in forms(settings)]


def calibration_texts(data: Path, role: str) -> list[str]:
    """Anchors or positives of dev rows, and of training rows if these are few, spread over the mixture's sets."""
    found = _spread(read_dev_sets(data), role)
    if len(found) < CALIBRATION:
        found += _spread([read_pair_set(path, side) for side, path in set_files(data)], role)
    return found[:CALIBRATION]


def _spread(sets: Sequence[PairSet], role: str) -> list[str]:
    chosen = [pairs.spread(math.ceil(CALIBRATION / len(sets))) for pairs in sets]
    return [text for pairs in chosen for text in (pairs.anchors if role == QUERY else pairs.positives)]


class StoredTask(Task):
    """A task with one form of the vectors, compared with the same task on full vectors."""

    def __init__(self, suite: str, data_name: str, contents: Any, form: Form, calibration: Sequence[str]) -> None:
        self.data_name, self.form = data_name, form
        self.calibration = list(calibration) if form.precision == INT8 else []
        settings = [contents, form.name, text_key("\n".join(self.calibration))]
        super().__init__(suite, f"{data_name}-{form.name}", settings)
        self.against = None if form == Form() else f"{data_name}-{Form().name}"

    def vectors(
        self, scorer: Scorer, queries: Sequence[str], stored: Sequence[str], role: str
    ) -> tuple[np.ndarray, np.ndarray]:
        """Queries as they are compared, and texts in `role` as an index stores them.

        Raises UserError if the model has fewer dimensions than the form.
        """
        width, most = scorer.encoder.model.get_embedding_dimension() or 0, self.form.dimensions or 0
        if most > width:
            what, where = f"{scorer.model.name} has {width} dimensions, not {most}", f"{self.suite}.dimensions"
            raise UserError(what, where=f"config key evaluation.suite.{where}", remedy="set fewer")
        embed = scorer.encoder.sentences
        vectors = embed(stored, role)
        calibration = embed(self.calibration, role) if self.calibration else vectors  # without training sets
        return self.form.cut(embed(queries, QUERY)), self.form.stored(vectors, calibration)

    def described(self, outcome: Outcome, scorer: Scorer, items: Sequence[str]) -> Outcome:
        """The outcome with the vectors' size, and with named items, which pair it with the other forms."""
        width, form = scorer.encoder.model.get_embedding_dimension() or 0, self.form
        outcome.notes["stored"] = {
            "of": self.data_name,
            "full": f"{self.data_name}-{Form().name}",
            "dimensions": form.dimensions or width,
            "precision": form.precision,
            "bytes": form.bytes_of(width),
        }
        outcome.columns[ITEM] = np.array([text_key(item) for item in items], dtype=object)
        return outcome


class StoredRetrieval(StoredTask):
    """nDCG@10 on a held-out set."""

    def __init__(self, data: RetrievalSet, *described: Any) -> None:
        super().__init__(*described)
        self.data = data

    def score(self, scorer: Scorer) -> Outcome:
        queries, stored = self.vectors(scorer, self.data.queries, self.data.candidates, DOCUMENT)
        similarity = scorer.encoder.model.similarity
        outcome = outcome_of(self.data, lambda rows: similarity(queries[rows], stored).cpu().numpy())
        main = tuple(measure for measure in outcome.measures if measure.metric == METRIC)
        return self.described(
            Outcome({METRIC: outcome.columns[METRIC]}, main, outcome.notes), scorer, self.data.queries
        )


class StoredPairs(StoredTask):
    """Spearman's correlation of cosines and grades."""

    def score(self, scorer: Scorer) -> Outcome:
        rows = read_samples(STS)
        one, other = ([row[key] for row in rows] for key in ("sentence1", "sentence2"))
        first, second = self.vectors(scorer, one, other, QUERY)
        outcome = similarity_task({"own": first}, {"own": second}, np.array([row["score"] for row in rows]))
        return self.described(outcome, scorer, [f"{a}\0{b}" for a, b in zip(one, other, strict=True)])
