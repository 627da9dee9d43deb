"""Vectors of other models, made part by part."""

from pathlib import Path

import numpy as np

from data.encoders import encode
from pipeline.core.embedding import Embedder, EmbeddingCache
from pipeline.core.models import load_folder
from tests.support.small_bases import tiny_base


def test_all_texts_get_their_vectors_also_those_of_a_prompt_that_the_first_part_has_not(tmp_path: Path) -> None:
    model = load_folder(tiny_base(), "cpu").eval()
    embedder = Embedder(model, max_length=8, cache=EmbeddingCache(tmp_path), told=False)
    texts = {"вопрос: ": [f"река {number}" for number in range(514)], "ответ: ": ["лес", "лес", "гора"]}
    encode(embedder, texts.items(), "terms", "mining")
    kept = Embedder(model, max_length=8, cache=EmbeddingCache(tmp_path))
    for prompt, some in texts.items():
        assert kept.missing(some, prompt) == []
        np.testing.assert_allclose(kept.embed(some, prompt), Embedder(model, 8).embed(some, prompt), atol=1e-5)
    assert len(list(tmp_path.rglob("*.npz"))) <= 2 * 4  # each is waited for until the disk has it
    encode(embedder, [("ответ: ", [])], "terms", "mining")
