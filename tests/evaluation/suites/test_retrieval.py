"""Term retrieval: exact metrics, several right answers, ties against the model."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import pytrec_eval
import torch
from sentence_transformers.util import cos_sim, dot_score, euclidean_sim
from transformers import AutoModel, AutoTokenizer

from configs.schema.config import Config
from configs.schema.evaluation import SuiteConfig
from data.artefact import PairSet, read_pair_set
from data.pair_files import PairWriter
from evaluation.encoder import Encoder
from evaluation.models import ScoredModel
from evaluation.outcome import Outcome
from evaluation.results import VECTOR_MODES, Difference, Score
from evaluation.scoring import Scorer
from evaluation.suites.heads import WEIGHTS, mode_scores
from evaluation.suites.retrieval import (
    HybridWeights,
    RetrievalSet,
    lexical_scores,
    outcome_of,
    read_retrieval_set,
    score_retrieval,
    tasks,
)
from evaluation.suites.task import Task
from evaluation.tables import write_tables
from pipeline.core.artefact import StageFolder
from pipeline.core.embedding import DOCUMENT, QUERY
from pipeline.core.errors import UserError
from pipeline.core.heads import Heads, read_heads, write_heads
from pipeline.core.model_folder import HEADS
from tests.evaluation.conftest import MakeModel
from tests.evaluation.test_evaluate import make_config

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


def test_a_term_has_all_its_definitions_and_a_definition_occurs_once(tmp_path: Path) -> None:
    write(tmp_path / "heldout" / "terms.parquet", PAIRS)
    data = read_retrieval_set(tmp_path, "terms")
    assert data.queries == ["маяк", "борщ", "музей", "поезд", "состав"]
    assert len(data.candidates) == 5
    assert data.relevant == [[0], [1, 3], [2], [4], [4]]


def test_a_row_with_another_label_becomes_a_wrong_candidate(tmp_path: Path) -> None:
    rows = [("шёл дождь", "было мокро", [], 1.0), ("шёл дождь", "было сухо", [], 0.0), ("жара", "было тепло", [], 0.5)]
    schema = {**SCHEMA, "score": pl.Float32}
    with PairWriter(tmp_path / "heldout" / "nli.parquet", scored=True) as file:
        file.write(pl.DataFrame(rows, schema=schema, orient="row"))
    data = read_retrieval_set(tmp_path, "nli")
    assert (data.queries, data.relevant, len(data.candidates)) == (["шёл дождь"], [[0]], 3)


def test_metrics_are_trec_evals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evaluation.suites.retrieval.CHUNK", 16)
    rng = np.random.default_rng(0)
    relevant = [sorted(rng.choice(60, rng.integers(1, 16), replace=False).tolist()) for _ in range(40)]
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


def test_a_right_candidate_after_the_tenth_place_counts_for_nothing() -> None:
    data = RetrievalSet(["tenth", "eleventh"], list("abcdefghijkl"), [[9], [10]])
    found = outcome_of(data, np.arange(12.0, 0.0, -1.0)[None].repeat(2, 0).__getitem__).columns
    assert found["mrr_at_10"].tolist() == [0.1, 0] and found["ndcg_at_10"].tolist() == [
        pytest.approx(1 / np.log2(11)),
        0,
    ]


def test_a_model_that_embeds_every_text_as_the_same_vector_scores_0() -> None:
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
    write(tmp_path / "heldout" / "terms.parquet", PAIRS)
    data = read_retrieval_set(tmp_path, "terms")
    outcome = score_retrieval(data, embedder)
    vectors = [embedder.sentences(data.queries, QUERY), embedder.sentences(data.candidates, DOCUMENT)]
    assert not np.allclose(embedder.sentences(data.queries, DOCUMENT), vectors[0])
    best = (vectors[0] @ vectors[1].T).argmax(axis=1)
    hits = [float(index in right) for index, right in zip(best, data.relevant, strict=True)]
    assert outcome.columns["recall_at_1"].tolist() == hits


def test_a_missing_set_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"set terms is not held out \(.*terms.parquet\)"):
        read_retrieval_set(tmp_path, "terms")


def test_a_set_without_a_right_candidate_is_one_line(tmp_path: Path) -> None:
    with PairWriter(tmp_path / "heldout" / "nli.parquet", scored=True) as file:
        rows = [("шёл дождь", "было сухо", [], 0.0)]
        file.write(pl.DataFrame(rows, schema={**SCHEMA, "score": pl.Float32}, orient="row"))
    with pytest.raises(UserError, match=r"set nli has no positive pair \(.*nli.parquet\)"):
        read_retrieval_set(tmp_path, "nli")


@pytest.fixture(scope="module")
def with_heads(make_model: MakeModel) -> Path:
    """A random model with prompts and heads, whose sparse weights are partly zero."""
    folder = make_model(seed=11, pooling="mean")
    torch.manual_seed(7)
    write_heads(folder, Heads(torch.nn.Linear(32, 1), torch.nn.Linear(32, 24)))
    return folder


def stage_of(folder: Path, dev: list[tuple[str, str]] = PAIRS) -> StageFolder:
    """The folder of `evaluate` next to one of `data` with a held-out set, a training set and dev rows of it."""
    for place, rows in (
        ("heldout/terms", PAIRS),
        ("asymmetric/words", [("изба", "деревянный дом")]),
        ("dev/words", dev),
    ):
        path = folder / "data" / f"{place}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, rows)
    return StageFolder("evaluate", folder / "evaluate", "f" * 48, {"data": folder / "data"})


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


def scored(folder: Path, stage: StageFolder, where: Path) -> tuple[Outcome, Task, Config]:
    config = make_config(where, "evaluation.suites=[held_out]", "evaluation.resamples=200")
    config.evaluation.suite["held_out"] = SuiteConfig(kind="retrieval", sets={"terms": "terms"})
    (task,) = tasks("held_out", config, stage)
    with Scorer(ScoredModel("merge", folder, "f"), config, "cpu") as scorer:
        return task.score(scorer), task, config


def test_modes_and_their_sums_are_scored_by_the_formulas_token_by_token(
    with_heads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = stage_of(tmp_path)
    data = read_retrieval_set(tmp_path / "data", "terms")
    hand = by_hand(with_heads)
    texts = data.queries, data.candidates
    found, sizes = mode_scores(Encoder(with_heads, token_budget=64), read_heads(with_heads), *texts)
    for mode, scores in hand.items():
        np.testing.assert_allclose(found[mode](slice(1, 4)), scores[1:4], atol=1e-5)
    size = {mode: own["bytes_per_passage"] for mode, own in sizes.items()}
    assert size["dense"] == 4 * 32 and size["sparse"] == 8 * sizes["sparse"]["active_ids"]
    outcome, _, _ = scored(with_heads, stage, tmp_path)
    assert outcome.columns["hybrid:bytes_per_passage"][0] == size["dense"] + size["sparse"] + size["multi_vector"]
    summed = outcome_of(data, (hand["dense"] + 0.3 * hand["sparse"] + hand["multi_vector"]).__getitem__)
    for name in ("recall_at_1", "mrr_at_10", "ndcg_at_10"):
        np.testing.assert_array_equal(outcome.columns[f"hybrid:{name}"], summed.columns[name])
    monkeypatch.setattr(HybridWeights, "of", lambda *_: (0.0, 1.0, 0.0))
    columns = scored(with_heads, stage, tmp_path)[0].columns
    fitted, sparse, fixed = (columns[f"{mode}:ndcg_at_10"] for mode in ("hybrid_fitted", "sparse", "hybrid"))
    assert fitted.tolist() == sparse.tolist() != fixed.tolist()


def test_weights_are_fitted_on_dev_rows_and_on_no_held_out_row(with_heads: Path, tmp_path: Path) -> None:
    """On dev rows they gain at least as much as each mode alone; changed held-out rows change no weight."""
    stage = stage_of(tmp_path)
    outcome, _, _ = scored(with_heads, stage, tmp_path)
    weights = outcome.notes["fitted weights"]
    dev = HybridWeights([read_pair_set(tmp_path / "data" / "dev" / "words.parquet", "asymmetric")])
    texts = dev.sets[0].queries, dev.sets[0].candidates
    found, _ = mode_scores(Encoder(with_heads), read_heads(with_heads), *texts)
    corners = [dev._gained([found], each) for each in np.eye(3)]
    assert sum(weights.values()) == pytest.approx(1)
    assert dev._gained([found], [weights[mode] for mode in VECTOR_MODES]) >= max(corners) > min(corners)
    write(tmp_path / "data" / "heldout" / "terms.parquet", [("изба", "маяк"), ("суп", "музей")])
    assert scored(with_heads, stage, tmp_path)[0].notes["fitted weights"] == weights


def test_weights_are_fitted_on_some_rows_of_each_set_that_has_positive_pairs() -> None:
    def pairs(number: int, score: float) -> PairSet:
        texts = [str(row) for row in range(number)]
        return PairSet("words", "asymmetric", texts, texts, [[]] * number, [score] * number)

    sets = HybridWeights([pairs(500, 1.0), pairs(3, 0.0), pairs(3, 1.0)]).sets
    assert [len(data.queries) for data in sets] == [200, 3]


def test_a_right_pair_gains_only_by_the_wrong_ones_above_it() -> None:
    """Right among 12 candidates in falling order: one query's first two, others' eleventh and tenth."""
    weights, scores = HybridWeights([]), np.arange(12.0, 0.0, -1.0)[None]
    texts = list("abcdefghijkl")
    weights.sets = [RetrievalSet(["one", "two"], texts, [[0, 1], [10]]), RetrievalSet(["three"], texts, [[9]])]
    found = [dict.fromkeys(VECTOR_MODES, scores.repeat(size, 0).__getitem__) for size in (2, 1)]
    assert weights._gained(found, WEIGHTS) == pytest.approx((1 + 0 + 1 / np.log2(11)) / 3)


def test_of_weights_that_are_equally_good_the_ones_nearest_to_the_fixed_ones_are_taken(
    with_heads: Path, tmp_path: Path
) -> None:
    """One dev pair is found by any weights; 1 : 0.3 : 1 is 0.43, 0.13 and 0.43 of their sum."""
    outcome, _, _ = scored(with_heads, stage_of(tmp_path, dev=[("изба", "деревянный дом")]), tmp_path)
    weights = outcome.notes["fitted weights"]
    assert weights["sparse"] == 0.1 and {weights["dense"], weights["multi_vector"]} == {0.4, 0.5}


def test_the_tables_set_modes_against_dense_and_bm25(with_heads: Path, tmp_path: Path) -> None:
    outcome, task, config = scored(with_heads, stage_of(tmp_path), tmp_path)
    outcome.write(tmp_path / "ours.parquet")
    stage = StageFolder("evaluate", tmp_path, "f" * 48, {})
    write_tables(config, stage, [task], {task.key: {"merge": {"predictions": "ours.parquet", "seconds": 1.0}}})
    scores = {(row.model, row.metric): row for row in Score.read(tmp_path / "scores.csv")}
    names = ["merge", "merge.sparse", "merge.multi_vector", "merge.hybrid", "merge.hybrid_fitted", "bm25"]
    assert list(dict.fromkeys(model for model, _ in scores)) == names
    assert {metric for model, metric in scores if model == "merge.sparse"} >= {"zero_share", "active_ids"}
    assert scores["merge.multi_vector", "bytes_per_passage"].score > scores["merge", "bytes_per_passage"].score
    rows = [row for row in Difference.read(tmp_path / "comparison.csv") if row.metric == "ndcg_at_10"]
    assert {row.against for row in rows if row.model == "merge.hybrid"} == {*names[:3], "bm25"}
    (row,) = [row for row in rows if (row.model, row.against) == ("merge.hybrid", "merge")]
    assert row.test == "permutation" and np.isfinite([row.ci_low, row.ci_high, row.p_value]).all()
    difference = outcome.columns["hybrid:ndcg_at_10"].mean() - outcome.columns["ndcg_at_10"].mean()
    assert row.difference == pytest.approx(difference, abs=1e-6)


def test_a_task_depends_on_its_pairs_the_dev_rows_of_its_side_the_stemmer_and_its_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, config = stage_of(tmp_path), make_config(tmp_path)
    config.evaluation.suite["held_out"] = SuiteConfig(kind="retrieval", sets={"terms": "terms"})

    def settings() -> str:
        (task,) = tasks("held_out", config, stage)
        return repr(task.settings)

    found = [settings()]
    for name in ("symmetric/pairs", "dev/pairs"):
        (path := tmp_path / "data" / f"{name}.parquet").parent.mkdir(exist_ok=True)
        write(path, PAIRS)
    assert settings() == found[0]
    for change in (
        lambda: write(tmp_path / "data/heldout/terms.parquet", PAIRS[:4]),
        lambda: write(tmp_path / "data/dev/words.parquet", PAIRS[:4]),
        lambda: setattr(config, "languages", ["en"]),
        lambda: monkeypatch.setattr("evaluation.suites.retrieval.version", lambda package: "0"),
    ):
        change()
        found.append(settings())
    assert len({*found}) == 5


def test_a_model_without_heads_is_scored_by_dense_vectors_next_to_bm25(embedder: Encoder, tmp_path: Path) -> None:
    outcome, _, _ = scored(embedder.folder, stage_of(tmp_path), tmp_path)
    assert {measure.by for measure in outcome.measures} == {"{}", "bm25"}


def test_bm25_is_lucenes_over_stems_and_queries_of_unknown_words_find_nothing() -> None:
    texts = ["Башня маяка", "суп из свёклы и капусты", "музеи и башни, башни"]
    scores = lexical_scores(["башнями", "аэродром", "СУП"], texts, ["kk", "ru"])(slice(3))
    stems, n = [["башн", "маяк"], ["суп", "из", "свекл", "и", "капуст"], ["муз", "и", "башн", "башн"]], 3
    mean = sum(map(len, stems)) / n
    idf = np.log(1 + (n - 2 + 0.5) / (2 + 0.5))
    expected = [idf * tf / (tf + 1.5 * (0.25 + 0.75 * len(s) / mean)) for s in stems for tf in [s.count("башн")]]
    np.testing.assert_allclose(scores[0], expected, rtol=1e-5)
    assert not scores[1].any() and scores[2].argmax() == 1


def test_among_candidates_without_a_word_bm25_finds_nothing() -> None:
    data = RetrievalSet(["маяк", "?"], ["…", "!!!", "—"], [[0], [1, 2]])
    scores = lexical_scores(data.queries, data.candidates, ["ru"])
    assert scores(slice(2)).shape == (2, 3) and not scores(slice(2)).any()
    assert outcome_of(data, scores).measures[0].score == 0  # of recall@1: ties are lost
    np.testing.assert_array_equal(lexical_scores(["?"], ["маяк", "…"], ["ru"])(slice(1)), [[0, 0]])
