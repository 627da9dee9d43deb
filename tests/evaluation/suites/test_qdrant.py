"""The example of a hybrid search in Qdrant ranks as the evaluation does: 200 passages, all three vectors."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evaluation.encoder import Encoder
from evaluation.results import SPARSE
from evaluation.suites.heads import WEIGHTS, HeadOutputs, mode_scores, vectors_of, weighted
from pipeline.core.embedding import DOCUMENT, QUERY
from pipeline.core.heads import Heads, read_heads, write_heads
from tests.evaluation.conftest import MakeModel

pytest.importorskip("qdrant_client", reason="the extra qdrant is not installed")

PLACES = ["у реки", "в горах", "за лесом", "на острове", "под мостом", "возле маяка", "посреди поля", "у вокзала"]
WHO = ["рыбак", "кузнец", "садовник", "врач", "сторож"]
DID = ["чинит старую лодку", "ждёт вечернего поезда", "варит уху", "читает письмо", "ищет потерянный ключ"]
PASSAGES = [f"{who.capitalize()} {did} {where}." for who in WHO for did in DID for where in PLACES]
QUESTIONS = ["Кто чинит лодку у реки?", "Где врач читает письмо?", "Что делает сторож под мостом?"]


def as_lists(vectors: HeadOutputs, row: int) -> tuple[list[float], dict[int, float], list[list[float]]]:
    """A text's vectors as the README's example has them: dense, sparse by id, and one for each token."""
    sparse = vectors.sparse[[row]]
    words = dict(zip(sparse.indices.tolist(), sparse.data.tolist(), strict=True))
    return vectors.dense[row].tolist(), words, vectors.tokens[row][vectors.mask[row]].tolist()


def test_a_hybrid_query_ranks_as_ours(repository: Path, make_model: MakeModel) -> None:
    folder = make_model(seed=13, pooling="mean")
    torch.manual_seed(5)
    write_heads(folder, Heads(torch.nn.Linear(32, 1), torch.nn.Linear(32, 24)))
    encoder, heads = Encoder(folder, device="cpu"), read_heads(folder)

    def encoded(texts: list[str], role: str) -> list[tuple[Any, ...]]:
        batches = vectors_of(encoder, heads, texts, encoder.prompt(role))
        found = {index: as_lists(own, row) for batch, own in batches for row, index in enumerate(batch)}
        return [found[index] for index in range(len(texts))]

    text = (repository / "evaluation/suites/qdrant.md").read_text(encoding="utf-8")
    (example,) = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "qdrant" in block]
    own = encoder.config
    modes, _ = mode_scores(encoder, heads, QUESTIONS, PASSAGES)
    hybrid, sparse_scores = (found(slice(None)) for found in (weighted(list(modes.values()), WEIGHTS), modes[SPARSE]))
    assert len(PASSAGES) == len(set(PASSAGES)) == 200 and own.hidden_size == 32
    for question, scores, sparse in zip(encoded(QUESTIONS, QUERY), hybrid, sparse_scores, strict=True):
        names: dict[str, Any] = {"passages": encoded(PASSAGES, DOCUMENT), "question": question}
        exec(example, names)
        points = names["found"].points
        np.testing.assert_allclose([point.score for point in points], np.sort(scores)[::-1][:10], atol=1e-4)
        assert [point.id for point in points] == np.argsort(-scores, kind="stable")[:10].tolist()
        alone = [point.score for point in names["one_way"].points]
        np.testing.assert_allclose(alone, np.sort(sparse)[::-1][:10], atol=1e-4)
