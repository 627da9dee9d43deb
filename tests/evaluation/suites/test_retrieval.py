"""Term retrieval: exact metrics, several right answers, ties against the model."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import pytrec_eval
from sentence_transformers.util import cos_sim, dot_score, euclidean_sim

from data.pair_files import PairWriter
from evaluation.encoder import Encoder
from evaluation.suites.retrieval import RetrievalSet, read_retrieval_set, score_retrieval
from pipeline.core.embedding import DOCUMENT, QUERY
from pipeline.core.errors import UserError

SCHEMA = {"anchor": pl.String, "positive": pl.String, "negatives": pl.List(pl.String)}
PAIRS = [
    ("маяк", "башня с огнём для кораблей"),
    ("борщ", "суп со свёклой"),
    ("музей", "дом, где хранят и показывают предметы"),
    ("борщ", "украинское первое блюдо"),
    ("поезд", "ряд сцепленных вагонов"),
    ("состав", "ряд сцепленных вагонов"),
]


def write(path: Path, pairs: list[tuple[str, str]]) -> Path:
    with PairWriter(path, scored=False) as file:
        file.write(pl.DataFrame([(*pair, []) for pair in pairs], schema=SCHEMA, orient="row"))
    return path


class Fixed:
    """Vectors given by hand."""

    def __init__(self, queries: np.ndarray, documents: np.ndarray, similarity: Any = cos_sim) -> None:
        self.model = SimpleNamespace(similarity=similarity)
        self.vectors = {QUERY: queries.astype(np.float32), DOCUMENT: documents.astype(np.float32)}

    def sentences(self, texts: list[str], role: str) -> np.ndarray:
        return self.vectors[role]


def test_a_term_has_all_its_definitions_and_a_definition_stands_once(tmp_path: Path) -> None:
    data = read_retrieval_set(write(tmp_path / "terms.parquet", PAIRS))
    assert data.queries == ["маяк", "борщ", "музей", "поезд", "состав"]
    assert len(data.candidates) == 5
    assert data.relevant == [[0], [1, 3], [2], [4], [4]]


def test_a_row_with_another_label_gives_a_wrong_candidate(tmp_path: Path) -> None:
    rows = [("шёл дождь", "было мокро", [], 1.0), ("шёл дождь", "было сухо", [], 0.0), ("жара", "было тепло", [], 0.5)]
    schema = {**SCHEMA, "score": pl.Float32}
    with PairWriter(tmp_path / "nli.parquet", scored=True) as file:
        file.write(pl.DataFrame(rows, schema=schema, orient="row"))
    data = read_retrieval_set(tmp_path / "nli.parquet")
    assert (data.queries, data.relevant, len(data.candidates)) == (["шёл дождь"], [[0]], 3)


def test_metrics_are_trec_evals(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    relevant = [sorted(rng.choice(60, rng.integers(1, 4), replace=False).tolist()) for _ in range(40)]
    data = RetrievalSet([f"q{n}" for n in range(40)], [f"d{n}" for n in range(60)], relevant)
    model = Fixed(rng.normal(size=(40, 4)), rng.normal(size=(60, 4)))
    outcome = score_retrieval(data, model)  # type: ignore[arg-type]
    unit = {role: v / np.linalg.norm(v, axis=1, keepdims=True) for role, v in model.vectors.items()}
    scores = unit[QUERY] @ unit[DOCUMENT].T
    run = {f"q{n}": {f"d{m}": float(s) for m, s in enumerate(row)} for n, row in enumerate(scores)}
    qrels = {f"q{n}": {f"d{m}": 1 for m in found} for n, found in enumerate(relevant)}
    theirs = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10", "success.1"}).evaluate(run)
    for n in range(40):
        found = theirs[f"q{n}"]
        assert outcome.columns["recall_at_1"][n] == found["success_1"]
        assert outcome.columns["ndcg_at_10"][n] == pytest.approx(found["ndcg_cut_10"], abs=1e-6)
        best = min(int((scores[n] > scores[n][m]).sum()) for m in relevant[n])
        assert outcome.columns["mrr_at_10"][n] == pytest.approx(1 / (best + 1) if best < 10 else 0)


def test_a_model_that_gives_every_text_one_vector_gets_nothing() -> None:
    data = RetrievalSet([f"q{n}" for n in range(30)], [f"d{n}" for n in range(30)], [[n] for n in range(30)])
    outcome = score_retrieval(data, Fixed(np.ones((30, 3)), np.ones((30, 3))))  # type: ignore[arg-type]
    assert [measure.score for measure in outcome.measures] == [0, 0, 0]


def test_vectors_are_compared_as_the_model_says() -> None:
    data = RetrievalSet(["q"], ["same direction, far away", "near"], [[1]])
    vectors = np.array([[1.0, 0.0]]), np.array([[9.0, 0.0], [1.0, 0.5]])
    found = [
        score_retrieval(data, Fixed(*vectors, similarity)).measures[0].score  # type: ignore[arg-type]
        for similarity in (cos_sim, dot_score, euclidean_sim)
    ]
    assert found == [0, 0, 1]


def test_queries_and_documents_take_their_own_prompts(embedder: Encoder, tmp_path: Path) -> None:
    data = read_retrieval_set(write(tmp_path / "terms.parquet", PAIRS))
    outcome = score_retrieval(data, embedder)
    vectors = [embedder.sentences(data.queries, QUERY), embedder.sentences(data.candidates, DOCUMENT)]
    assert not np.allclose(embedder.sentences(data.queries, DOCUMENT), vectors[0])
    best = (vectors[0] @ vectors[1].T).argmax(axis=1)
    hits = [float(index in right) for index, right in zip(best, data.relevant, strict=True)]
    assert outcome.columns["recall_at_1"].tolist() == hits


def test_a_missing_set_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such held-out set \(.*terms.parquet\)"):
        read_retrieval_set(tmp_path / "terms.parquet")
