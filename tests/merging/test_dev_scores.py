"""Dev scores against scikit-learn and brute force."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, ndcg_score

from data.artefact import PairSet
from merging.blend import Blend
from merging.dev_scores import Ranking, Retrieval, TextBank, ndcg, retrieval, set_tasks
from tests.merging.conftest import make_model

PROMPTS = {"query": "query: ", "document": "passage: "}
PAIRS = PairSet(
    name="pairs",
    side="symmetric",
    anchors=["кот", "кот", "дом", "лес"],
    positives=["пёс", "мост", "город", "кот"],
    negatives=[["хлеб"], [], ["соль", "окно"], []],
    scores=[1.0, 1.0, 0.0, 1.0],
)


def test_ndcg_equals_scikit_learn() -> None:
    random_numbers = np.random.default_rng(0)
    for _ in range(50):
        scores, relevant = random_numbers.random(30), random_numbers.random(30) < 0.2
        relevant[0] = True
        found = np.argsort(-scores)[:10].tolist()
        expected = ndcg_score(relevant[None].astype(float), scores[None], k=10)
        assert ndcg(found, np.flatnonzero(relevant).tolist()) == pytest.approx(expected)


def test_retrieval_finds_all_answers_and_hides_the_query_itself() -> None:
    embeddings = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]), dim=-1)
    task = Retrieval(torch.tensor([0]), torch.tensor([0, 1, 2]), answers=[[1]], hidden=[[0]])
    assert task.score(embeddings) == 1.0
    with_itself = Retrieval(torch.tensor([0]), torch.tensor([0, 1, 2]), answers=[[1]], hidden=[[]])
    assert with_itself.score(embeddings) == pytest.approx(1 / np.log2(3))


def test_ranking_is_the_average_precision_of_cosines() -> None:
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.nn.functional.normalize(torch.randn(40, 8, generator=generator), dim=-1)
    left, right, labels = torch.arange(20), torch.arange(20, 40), np.arange(20) % 3 == 0
    cosines = [float(embeddings[a] @ embeddings[b]) for a, b in zip(left, right, strict=True)]
    task = Ranking(left, right, labels.astype(np.int64))
    assert task.score(embeddings) == pytest.approx(average_precision_score(labels, cosines))


def test_a_symmetric_set_measures_ranking_and_retrieval_with_the_query_prompt(tmp_path: Path) -> None:
    bank = TextBank(Blend({"init": make_model(tmp_path / "model", prompts=PROMPTS)}, 64), 4)
    tasks = set_tasks(PAIRS, bank).tasks
    assert set(tasks) == {"ranking", "retrieval"}
    assert all(text.startswith("query: ") for text in bank.numbers)
    ranking, task = tasks["ranking"], tasks["retrieval"]
    assert isinstance(ranking, Ranking) and isinstance(task, Retrieval)
    assert ranking.labels.tolist() == [1, 1, 0, 1, 0, 0, 0]  # rows by their label, then every negative
    texts = list(bank.numbers)
    assert [texts[number] for number in task.queries] == ["query: кот", "query: лес"]
    passages = [texts[number].removeprefix("query: ") for number in task.passages]
    assert [[passages[place] for place in places] for places in task.answers] == [["мост", "пёс"], ["кот"]]
    assert [[passages[place] for place in places] for places in task.hidden] == [["кот"], []]


def test_an_asymmetric_set_measures_retrieval_with_both_prompts(tmp_path: Path) -> None:
    bank = TextBank(Blend({"init": make_model(tmp_path / "model", prompts=PROMPTS)}, 64), 4)
    asymmetric = PairSet("answers", "asymmetric", ["кот"], ["дом"], [["лес"]], [1.0])
    assert set(set_tasks(asymmetric, bank).tasks) == {"retrieval"}
    assert set(bank.numbers) == {"query: кот", "passage: дом", "passage: лес"}


def test_a_limit_on_passages_keeps_every_answer(tmp_path: Path) -> None:
    bank = TextBank(Blend({"init": make_model(tmp_path / "model")}, 64), 4)
    assert len(retrieval(PAIRS, bank, passages=4).passages) == 4
    assert len(retrieval(PAIRS, bank, passages=1).passages) == 3  # the answers of all queries
    assert len(retrieval(PAIRS, bank, queries=1).queries) == 1


def test_embeddings_equal_the_librarys_encode(models: dict[str, Path]) -> None:
    blend = Blend(models, 64)
    bank = TextBank(blend, batch=3)
    texts = ["кот", "белый кот у реки", "дом", "тихий лес и старый мост у моря", "соль"]
    numbers = bank.add(texts, "query")
    ours = bank.encode()[numbers]
    np.testing.assert_allclose(ours.numpy(), blend.model.encode(texts), atol=1e-6)


def test_equal_texts_are_encoded_once(models: dict[str, Path]) -> None:
    bank = TextBank(Blend(models, 64), batch=3)
    assert bank.add(["кот", "дом", "кот"], "query").tolist() == [0, 1, 0]
    assert bank.encode().shape == (2, 32)
