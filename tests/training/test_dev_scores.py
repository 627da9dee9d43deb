"""The dev score against scikit-learn and scipy, and what may not change it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer
from sklearn.metrics import ndcg_score

from data.artefact import PairSet
from pipeline.chain import CHAIN
from pipeline.core.embedding import Prompts
from pipeline.core.errors import UserError
from pipeline.core.models import load_folder
from pipeline.stage import run_stage
from tests.support.planned_sets import prepared_run, rows, tiny_model
from tests.support.small_bases import tiny_base
from training.dev_scores import (
    DevEvaluator,
    Evaluators,
    PrecomputedEmbeddings,
    dev_evaluators,
    retrieval_evaluator,
    similarity_evaluator,
)

PROMPTS = Prompts("query: ", "passage: ")
PAIRS = PairSet(
    name="pairs",
    side="symmetric",
    anchors=["кот", "кот", "дом", "лес"],
    positives=["пёс", "мост", "город", "кот"],
    negatives=[["хлеб"], [], ["соль", "окно"], []],
    scores=[1.0, 1.0, 0.0, 1.0],
)


@pytest.fixture(scope="module")
def model() -> SentenceTransformer:
    return load_folder(tiny_base(), "cpu")


def random_set(name: str, side: str, seed: int, scored: bool = False) -> PairSet:
    made = rows(40, seed=seed, negatives=1, scored=scored)
    columns = ([row[key] for row in made] for key in ("anchor", "positive", "negatives"))
    return PairSet(name, side, *columns, [row["score"] if scored else 1.0 for row in made])  # type: ignore[arg-type]


def encoded(model: SentenceTransformer, texts: list[str]) -> np.ndarray:
    return model.encode(texts, batch_size=3, normalize_embeddings=True)


def test_a_set_of_pairs_is_found_among_all_passages_of_its_side(model: SentenceTransformer) -> None:
    first, second = (random_set(name, "asymmetric", seed) for name, seed in (("first", 1), ("second", 2)))
    passages = [*first.passages(), *second.passages()]
    queries, corpus = encoded(model, first.anchors), encoded(model, passages)
    relevant = np.eye(len(first), len(passages))
    found = DevEvaluator([first, second], model, 64).score_model(model).sets
    assert found["asymmetric"]["first"] == pytest.approx(ndcg_score(relevant, queries @ corpus.T, k=10), abs=1e-6)
    alone = DevEvaluator([first], model, 64).score_model(model).sets
    assert alone["asymmetric"]["first"] > found["asymmetric"]["first"]


def test_a_set_of_different_scores_is_evaluated_by_their_correlation(model: SentenceTransformer) -> None:
    pairs = random_set("scored", "symmetric", 3, scored=True)
    cosines = (encoded(model, pairs.anchors) * encoded(model, pairs.positives)).sum(axis=1)
    found = DevEvaluator([pairs], model, 64)(model)
    assert found["scored_score"] == pytest.approx(spearmanr(pairs.scores, cosines).statistic, abs=1e-6)


def test_the_score_is_the_mean_over_the_sides_of_their_sets_weighted_by_rows(model: SentenceTransformer) -> None:
    sets = [random_set("one", "symmetric", 1), random_set("two", "symmetric", 2), random_set("three", "asymmetric", 3)]
    sets[1] = sets[1].take(range(10))
    found = DevEvaluator(sets, model, 64)(model)
    symmetric = (40 * found["one_score"] + 10 * found["two_score"]) / 50
    assert found["one_score"] != found["two_score"]
    assert found["score"] == pytest.approx((symmetric + found["three_score"]) / 2)
    assert found["three_score"] == DevEvaluator(sets[2:], model, 64)(model)["score"]  # the other side doesn't count


def test_a_set_that_measures_nothing_has_no_score() -> None:
    low = PairSet("low", "symmetric", ["кот"], ["дом"], [[]], [0.5])
    assert dev_evaluators([low], PROMPTS) == {}


def test_equal_cosines_have_no_correlation(model: SentenceTransformer) -> None:
    pairs = PairSet("scored", "symmetric", ["кот", "дом"], ["кот", "дом"], [[], []], [1.0, 0.0])
    with torch.no_grad():
        flat = load_folder(tiny_base(), "cpu")
        for parameter in flat.parameters():
            parameter.zero_()
    assert DevEvaluator([pairs], flat, 64)(flat)["score"] == 0


def test_texts_have_their_prompts(model: SentenceTransformer) -> None:
    task = retrieval_evaluator(PAIRS, PROMPTS, PAIRS.passages())
    assert task.queries == ["query: кот", "query: лес"]  # not that of the row with score 0
    assert task.corpus == [f"passage: {text}" for text in ("пёс", "мост", "кот", "город", "хлеб", "соль", "окно")]
    assert task.relevant_docs == {"0": {"0", "1"}, "1": {"2"}}
    pairs = similarity_evaluator(PAIRS, PROMPTS)
    assert (pairs.sentences1[2], pairs.sentences2[2]) == ("query: дом", "passage: город")


def test_the_sets_of_a_side_share_its_passages_in_memory() -> None:
    """Each set has those of all: with 40 sets of 200 rows and seven negatives 1.5 GB of equal strings."""
    sets = [random_set(name, "asymmetric", seed) for name, seed in (("first", 1), ("second", 2))]
    texts = [{text: text for text in task.corpus} for task in dev_evaluators(sets, PROMPTS).values()]  # type: ignore[union-attr]
    assert texts[0].keys() == texts[1].keys() and all(texts[1][text] is text for text in texts[0])


def test_a_query_does_not_find_itself() -> None:
    pairs = PairSet("pairs", "symmetric", ["кот"], ["дом"], [["кот"]], [1.0])
    task = retrieval_evaluator(pairs, Prompts("", ""), pairs.passages())
    vectors: object = PrecomputedEmbeddings({"кот": 0, "дом": 1}, torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    assert task(vectors)["cosine_ndcg@10"] == 1.0  # type: ignore[arg-type]
    itself = PairSet("pairs", "symmetric", ["кот"], ["кот"], [["дом"]], [1.0])  # unless it is the answer
    assert retrieval_evaluator(itself, Prompts("", ""), ["кот", "дом"])(vectors)["cosine_ndcg@10"] == 1.0  # type: ignore[arg-type]


def test_cosines_of_many_queries_are_in_memory_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of 20,000 queries and their answers took 5 GB."""
    texts = [f"текст {number}" for number in range(90)]
    negatives = [[texts[row], texts[60 + row]] for row in range(30)]  # its own text, which doesn't compete, and another
    pairs = PairSet("pairs", "symmetric", texts[:30], texts[30:60], negatives, [1.0] * 30)
    drawn = torch.randn(90, 8, generator=torch.Generator().manual_seed(0))
    vectors: Any = PrecomputedEmbeddings({text: place for place, text in enumerate(texts)}, drawn)
    found, sizes = list[np.ndarray](), list[int]()
    for most in (2**20, 30 * 7):
        monkeypatch.setattr("training.dev_scores.MOST_COSINES", most)
        task = retrieval_evaluator(pairs, Prompts("", ""), pairs.passages())
        (own,) = task.score_functions.values()
        task.score_functions = {"cosine": lambda *some, own=own: sizes.append(some[1].shape[0]) or own(*some)}
        for _ in range(2):
            task(vectors)
            found.append(task.by_query)
    assert sizes == 2 * [90] + 2 * [*[7] * 12, 6]
    assert all(np.array_equal(each, found[0]) for each in found) and 0 < found[0].mean() < 1


def test_the_score_of_a_query_is_what_the_library_averages(model: SentenceTransformer) -> None:
    evaluators = Evaluators(
        {"pairs": retrieval_evaluator(PAIRS, PROMPTS, [*PAIRS.passages(), "мост", "город"])}, model, 64
    )
    by_query, scores = evaluators.by_query(model)["pairs"], evaluators.scores(model)["pairs"]
    assert by_query.shape == (2,)
    assert by_query.mean() == scores


def test_a_limit_on_passages_keeps_every_answer() -> None:
    assert len(retrieval_evaluator(PAIRS, PROMPTS, PAIRS.passages(), max_passages=4).corpus) == 4
    assert (
        len(retrieval_evaluator(PAIRS, PROMPTS, PAIRS.passages(), max_passages=1).corpus) == 3
    )  # the answers of all queries
    assert len(retrieval_evaluator(PAIRS, PROMPTS, PAIRS.passages(), max_queries=1).queries) == 1


def test_vectors_equal_the_librarys_encode_and_equal_texts_are_encoded_once(model: SentenceTransformer) -> None:
    evaluators = Evaluators({"pairs": similarity_evaluator(PAIRS, Prompts("", ""))}, model, 64)
    assert sorted(evaluators.places) == ["город", "дом", "кот", "лес", "мост", "пёс"] and len(evaluators.ids) == 6
    seen: list[PrecomputedEmbeddings] = []
    evaluators.evaluators["pairs"] = lambda vectors: seen.append(vectors) or {}  # type: ignore[assignment]
    evaluators.metrics(model)
    np.testing.assert_allclose(seen[0].encode(["город", "кот"]), model.encode(["город", "кот"]), atol=1e-6)


def test_texts_of_each_side_have_the_model_s_prompts_for_it(model: SentenceTransformer) -> None:
    prompted = SentenceTransformer(modules=list(model), device="cpu", prompts={"query": "q: ", "passage": "p: "})
    sets = [random_set(side, side, 1) for side in ("symmetric", "asymmetric")]
    found = DevEvaluator(sets, prompted, 64).sides
    texts: list[Any] = [found[side].evaluators[side] for side in ("symmetric", "asymmetric")]
    assert {text[:3] for text in (*texts[0].queries, *texts[0].corpus, *texts[1].queries)} == {"q: "}
    assert {text[:3] for text in texts[1].corpus} == {"p: "}


def test_weights_are_scored_without_dropout_in_the_requested_precision() -> None:
    model, sets = tiny_model(dropout=0.5), [random_set("scored", "symmetric", 3, scored=True)]
    whole, again, half = (
        DevEvaluator(sets, model, 64, precision).sides["symmetric"].metrics(model.train())["scored"]["pearson_cosine"]
        for precision in ("fp32", "fp32", "bf16")
    )
    assert whole == again != half == pytest.approx(whole, abs=0.05)


def test_texts_are_cut_at_the_smaller_of_both_limits(model: SentenceTransformer) -> None:
    pairs = PairSet("pairs", "symmetric", ["река " * 200], ["море"], [[]], [1.0])

    def width(limit: int) -> int:
        return max(map(len, DevEvaluator([pairs], model, limit).sides["symmetric"].ids))

    assert width(8) == 8
    assert width(1000) == model.max_seq_length


def test_a_prompt_that_leaves_nothing_of_dev_texts_is_refused() -> None:
    prompted = tiny_model()
    prompted.prompts = {"query": "вопрос о реке, городе и зиме: "}
    with pytest.raises(UserError, match=r"cut at 8 tokens.*training\.dev_length"):
        DevEvaluator([PAIRS], prompted, 8)


def test_dev_sets_too_small_for_a_batch_are_scored_without_a_loss(tmp_path: Path) -> None:
    sets = {"symmetric/pairs": rows(32), "dev/pairs": rows(3, seed=5)}
    manifest = run_stage(CHAIN["symmetric"], prepared_run(tmp_path, sets, max_steps=2, dev_steps=1))
    assert manifest.metrics["dev_score"] == manifest.metrics["dev_pairs_score"] > 0
    assert "dev_pairs_loss" not in manifest.metrics
