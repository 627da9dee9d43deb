"""Mined negatives against a search by hand with the same embeddings."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tests.support.prepared_data import Prepared, composed, run_config


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A static word embedding model, seeded."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import StaticEmbedding
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    texts = (Path(__file__).parents[2] / "data/samples/IlyaGusev/gazeta/gazeta_train.jsonl").read_text(encoding="utf-8")
    splitter = Whitespace()
    words = sorted({word for word, _ in splitter.pre_tokenize_str(texts)})
    tokenizer = Tokenizer(WordLevel({"[UNK]": 0} | {word: n for n, word in enumerate(words, 1)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = splitter
    weights = torch.randn(len(words) + 1, 32, generator=torch.Generator().manual_seed(1))
    folder = tmp_path_factory.mktemp("model")
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=weights.numpy())], device="cpu").save(
        str(folder)
    )
    return folder


def mined(embedder: Path, folder: Path, max_rows: int | None = None, **settings: object) -> Prepared:
    config = composed("data.dev.anchors=0")
    gazeta = config.data.sources["gazeta"]
    gazeta.negatives, gazeta.construction, gazeta.columns = "mine", "pairs", {"anchor": "title", "positive": "text"}
    gazeta.max_rows = max_rows
    config.data.sources, config.data.held_out = {"gazeta": gazeta}, {}
    config.data.mining.model = str(embedder)
    for name, value in settings.items():
        setattr(config.data.mining, name, value)
    return run_config(config, folder)


def test_mining_that_finds_nothing_says_so(embedder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING"):
        prepared = mined(embedder, tmp_path, max_rows=1)
    assert prepared.ledger["gazeta"]["negatives"] == 0
    assert "gazeta: mining found no negative for any of 1 pairs: give it more rows" in caplog.text


def test_the_negative_is_the_nearest_other_text(embedder: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    prepared = mined(embedder, tmp_path, range_min=0, relative_margin=None)
    pairs = prepared.pairs("asymmetric", "gazeta")
    model = SentenceTransformer(str(embedder), device="cpu")
    anchors, texts = (
        model.encode(pairs[column].to_list(), normalize_embeddings=True) for column in ("anchor", "positive")
    )
    scores = anchors @ texts.T
    for row, title in enumerate(pairs["anchor"]):
        scores[row, [place for place, other in enumerate(pairs["anchor"]) if other == title]] = -np.inf
    expected = [[pairs["positive"][int(place)]] for place in scores.argmax(axis=1)]
    assert pairs["negatives"].to_list() == expected
    assert prepared.ledger["gazeta"]["negatives"] == len(pairs)
    assert prepared.ledger["gazeta"]["mined"]["revision"] == "local folder"


def test_candidates_too_near_the_positive_are_dropped_and_their_share_is_in_the_ledger(
    embedder: Path, tmp_path: Path
) -> None:
    plain = mined(embedder, tmp_path / "plain", range_min=0, relative_margin=None)
    strict = mined(embedder, tmp_path / "strict", range_min=0, relative_margin=0.9)
    share = strict.ledger["gazeta"]["mined"]["false_negatives"]
    assert plain.ledger["gazeta"]["mined"]["false_negatives"] == 0 < share <= 1
    assert strict.ledger["gazeta"]["negatives"] <= plain.ledger["gazeta"]["negatives"]
    assert f"{share:.1%} of the candidates were dropped" in (strict.folder / "ledger.md").read_text(encoding="utf-8")


def test_a_model_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    from pipeline.core.errors import UserError

    with pytest.raises(UserError, match=r"data.mining.model: neither a folder nor a Hub id \(.*nowhere at main\)"):
        mined(tmp_path / "nowhere", tmp_path)


def test_negatives_belong_to_the_set(embedder: Path, tmp_path: Path) -> None:
    pairs = mined(embedder, tmp_path, range_min=0, relative_margin=None, negatives=2).pairs("asymmetric", "gazeta")
    assert set(pairs["negatives"].explode()) <= set(pairs["positive"])
    assert pl.Series(pairs["negatives"].list.len()).to_list() == [2] * len(pairs)
