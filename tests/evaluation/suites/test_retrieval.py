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


@pytest.fixture(scope="module")
def with_heads(make_model: MakeModel) -> Path:
    """A random model with prompts and heads, whose sparse weights are partly zero."""
    folder = make_model(seed=11, folder=None, pooling="mean")
    torch.manual_seed(7)
    write_heads(folder, torch.nn.Linear(32, 1), torch.nn.Linear(32, 24))
    return folder


def stage_of(folder: Path, dev: list[tuple[str, str]] = PAIRS) -> StageFolder:
    """The folder of evaluate beside one of data with a held-out set, a training set and dev rows of it."""
    for place, rows in (("heldout/terms", PAIRS), ("asymmetric/words", [("изба", "деревянный дом")]), ("dev/words", dev)):
        path = folder / "data" / f"{place}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, rows)
    return StageFolder("evaluate", folder / "evaluate", "f" * 48, {"data": folder / "data"})


@pytest.fixture
def outcome(with_heads: Path, tmp_path: Path) -> Outcome:
    config = make_config(tmp_path, "evaluation.suites=[held_out]")
    config.evaluation.suite["held_out"] = SuiteConfig(kind="retrieval", sets={"terms": "terms"})
    (task,) = tasks("held_out", config, stage_of(tmp_path))
    with Scorer(ScoredModel("ours", with_heads, "f"), config, "cpu") as scorer:
        return task.score(scorer)


def by_hand(folder: Path) -> dict[str, np.ndarray]:
    """Scores [queries, candidates] in each mode, text by text and token by token, as FlagEmbedding's formulas say."""
    tokenizer, encoder = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    sparse_head, token_head = (torch.load(folder / name, weights_only=True) for name in HEADS)

    def encoded(text: str) -> tuple[np.ndarray, dict[int, float], np.ndarray]:
        batch = tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            hidden = encoder(**batch).last_hidden_state[0]
        words: dict[int, float] = {}
        for token, weight in zip(batch["input_ids"][0].tolist(), hidden @ sparse_head["weight"][0], strict=True):
            if token not in tokenizer.all_special_ids:
                words[token] = max(words.get(token, 0.0), float(weight + sparse_head["bias"][0]))
        tokens = hidden[1:] @ token_head["weight"].T + token_head["bias"]
        dense = hidden.mean(0)
        return (dense / dense.norm()).numpy(), words, (tokens / tokens.norm(dim=1, keepdim=True)).numpy()

    queries = [encoded(f"query: {text}") for text in dict.fromkeys(anchor for anchor, _ in PAIRS)]
    candidates = [encoded(f"passage: {text}") for text in dict.fromkeys(positive for _, positive in PAIRS)]
    pairs = [[(query, candidate) for candidate in candidates] for query in queries]
    return {
        "dense": np.array([[q[0] @ c[0] for q, c in row] for row in pairs]),
        "sparse": np.array([[sum(w * c[1].get(t, 0.0) for t, w in q[1].items()) for q, c in row] for row in pairs]),
        "multi_vector": np.array([[(q[2] @ c[2].T).max(axis=1).mean() for q, c in row] for row in pairs]),
    }


def test_modes_are_scored_by_the_formulas_token_by_token(with_heads: Path) -> None:
    data = retrieval_set(PairSet("terms", "asymmetric", *zip(*PAIRS, strict=True), [[]] * 6, [1.0] * 6))  # type: ignore[arg-type]
    found = mode_scores(Encoder(with_heads, device="cpu", token_budget=64), read_heads(with_heads), *data_texts(data))
    for mode, scores in by_hand(with_heads).items():
        np.testing.assert_allclose(found.scores[mode], scores, atol=1e-5)
