"""Mined negatives against a search by hand with the same embeddings."""

import json
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import data.mining
from configs.schema.data import MiningConfig
from data.mining import Mined, hard_negatives, known_texts, mine
from pipeline import application
from pipeline.check import check_auxiliary_models
from pipeline.core.embedding import EmbeddingCache
from pipeline.core.errors import UserError
from pipeline.run import in_order
from tests.support.prepared_data import Prepared, composed, run_config


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A static word embedding model, seeded."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
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


def mined(
    embedder: Path | str, folder: Path, *overrides: str, max_rows: int | None = None, **settings: object
) -> Prepared:
    config = composed("data.dev.anchors=0", *overrides)
    gazeta = config.data.sources["gazeta"]
    gazeta.negatives, gazeta.construction, gazeta.columns = "mine", "pairs", {"anchor": "title", "positive": "text"}
    gazeta.max_rows = max_rows
    config.data.sources, config.data.held_out = {"gazeta": gazeta}, {}
    config.data.mining.model = str(embedder)
    for name, value in settings.items():
        setattr(config.data.mining, name, value)
    return run_config(config, folder)


@pytest.mark.filterwarnings("error:std")
def test_mining_that_finds_nothing_says_so(embedder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    prepared = mined(embedder, tmp_path, max_rows=1)
    assert prepared.ledger["gazeta"]["negatives"] == 0
    assert "gazeta: 1 of 1 rows have no mined negative" in caplog.text


def test_vectors_are_compared_when_no_embedder_holds_them_any_longer(
    embedder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    caches = weakref.WeakSet[EmbeddingCache]()

    def remembered(folder: Path) -> EmbeddingCache:
        caches.add(cache := EmbeddingCache(folder))
        return cache

    def compared(*args: Any) -> Mined:
        assert not caches
        return hard_negatives(*args)

    monkeypatch.setattr("data.encoders.EmbeddingCache", remembered)
    monkeypatch.setattr(data.mining, "hard_negatives", compared)
    mined(embedder, tmp_path)


def cosines(model: Path, pairs: pl.DataFrame) -> np.ndarray:
    """Cosines of each anchor with each distinct positive, in their order."""
    from sentence_transformers import SentenceTransformer

    loaded = SentenceTransformer(str(model), device="cpu")
    texts = pairs["anchor"].to_list(), pairs["positive"].unique(maintain_order=True).to_list()
    anchors, passages = (loaded.encode(some, normalize_embeddings=True) for some in texts)
    return anchors @ passages.T


def test_the_negative_is_the_nearest_other_text(embedder: Path, tmp_path: Path) -> None:
    prepared = mined(embedder, tmp_path, range_min=0, margin=None)
    pairs = prepared.pairs("asymmetric", "gazeta")
    passages, scores = pairs["positive"].unique(maintain_order=True), cosines(embedder, pairs)
    for row, title in enumerate(pairs["anchor"]):
        own = pairs.filter(pl.col("anchor") == title)["positive"]
        scores[row, passages.is_in(own.implode()).to_numpy()] = -np.inf
    assert pairs["negatives"].to_list() == [[passages[int(place)]] for place in scores.argmax(axis=1)]
    line = prepared.ledger["gazeta"]
    assert (line["negatives"], line["mined"]["revision"]) == (len(pairs), "local folder")


def test_a_candidate_within_the_margin_of_the_positive_is_dropped_and_the_share_is_in_the_ledger(
    embedder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = mined(embedder, tmp_path / "plain", range_min=0, margin=None)
    assert "no mined negative" not in caplog.text
    strict = mined(embedder, tmp_path / "strict", range_min=0, margin=2.0)
    pairs = strict.pairs("asymmetric", "gazeta")
    scores, passages = cosines(embedder, pairs), pairs["positive"].unique(maintain_order=True).to_list()
    for row, (positive, negatives) in enumerate(pairs.select("positive", "negatives").iter_rows()):
        limit = scores[row, passages.index(positive)] - 2.0 * scores[row].std(ddof=1)
        below = scores[row] <= limit
        expected = [scores[row][below].max()] if below.any() else []
        assert [scores[row, passages.index(text)] for text in negatives] == expected
    line = strict.ledger["gazeta"]["mined"]
    assert plain.ledger["gazeta"]["mined"]["false_negatives"] == 0 < line["false_negatives"] <= 1
    assert 0 < line["pairs_without"] == (pairs["negatives"].list.len() == 0).sum()
    ledger = (strict.folder / "ledger.md").read_text(encoding="utf-8")
    assert f"{line['false_negatives']:.1%} of the candidates were dropped" in ledger
    assert f"gazeta: {line['pairs_without']} of {len(pairs)} rows have no mined negative" in caplog.text
    assert len(line["samples"]) == 5 and ledger.count("    - mined: ") == 5


@given(st.integers(0, 2**32 - 1), st.floats(0.05, 0.9), st.sampled_from([None, 0.0, 0.5, 1.5]))
@settings(max_examples=30, deadline=None)
def test_a_model_whose_cosines_lie_closer_together_mines_the_same(
    seed: int, width: float, margin: float | None
) -> None:
    """An additional coordinate that all vectors share moves every cosine c to (1 - width) + width * c."""
    random = torch.Generator().manual_seed(seed)
    anchors, passages = (torch.randn(40, 8, generator=random, dtype=torch.float64) for _ in range(2))
    anchors, passages = (torch.nn.functional.normalize(some, dim=1) for some in (anchors, passages))
    passages = torch.nn.functional.normalize(passages + anchors, dim=1)

    def found(*vectors: torch.Tensor) -> Mined:
        own = list(range(40))
        return hard_negatives(*vectors, own, [[place] for place in own], MiningConfig(range_min=2, margin=margin))

    shared = torch.full((40, 1), (1 - width) ** 0.5, dtype=torch.float64)
    narrow = (torch.cat([some * width**0.5, shared], dim=1) for some in (anchors, passages))
    assert found(*narrow) == found(anchors, passages)


@pytest.mark.parametrize(("most", "rows_at_once"), [(39, 1), (7 * 40, 7), (40 * 40, 40)])
def test_anchors_in_batches_get_what_each_gets_alone(
    most: int, rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = torch.Generator().manual_seed(1)
    anchors, passages = (torch.randn(40, 8, generator=random) for _ in range(2))
    passages += anchors
    own, known = [*range(40)][::-1], [[39 - row, *range(row % 3)] for row in range(40)]
    settings = MiningConfig(range_min=2, range_max=12, negatives=3, margin=0.5)
    alone = [hard_negatives(anchors[[row]], passages, [own[row]], [known[row]], settings) for row in range(40)]
    sizes, normalize = list[int](), data.mining.normalize
    monkeypatch.setattr(data.mining, "normalize", lambda some, dim: sizes.append(len(some)) or normalize(some, dim=dim))
    monkeypatch.setattr(data.mining, "MOST_COSINES", most)
    found = hard_negatives(anchors, passages, own, known, settings)
    assert max(sizes[1:]) == rows_at_once and sum(sizes[1:]) == 40  # after the passages
    assert found.negatives == [one.negatives[0] for one in alone]
    assert found.candidates == sum(one.candidates for one in alone)
    assert 0 < found.too_near == sum(one.too_near for one in alone) and 0 < found.without < 40


@pytest.mark.parametrize(
    ("first", "last", "negatives", "expected"),
    [
        (0, 9, 2, [2, 4]),
        (2, 9, 2, [1, 3]),
        (2, 3, 2, [1]),
        (8, 9, 2, [1, 3]),  # too few have that rank
        (2, 9, 5, [2, 4, 1, 3]),  # there are fewer than asked for
    ],
)
def test_candidates_are_those_of_the_ranks_asked_for_or_the_farthest(
    first: int, last: int, negatives: int, expected: list[int]
) -> None:
    angles = torch.tensor([0.1, 1.2, 0.3, 1.4, 0.6])  # of the positive and four others with the anchor
    passages = torch.stack([angles.cos(), angles.sin()], dim=1) * torch.arange(1, 6)[:, None]
    settings = MiningConfig(range_min=first, range_max=last, negatives=negatives, margin=None)
    found = hard_negatives(torch.tensor([[2.0, 0.0]]), passages, [0], [[0]], settings)
    assert found.negatives == [expected]


def test_another_margin_encodes_nothing_again(embedder: Path, tmp_path: Path) -> None:
    def kept() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in (tmp_path / "cache/embeddings").rglob("*.npz")}

    mined(embedder, tmp_path, margin=0.5)
    before = kept()
    again = mined(embedder, tmp_path, margin=0.0, range_min=0)
    assert before and kept() == before
    mined(embedder, tmp_path, margin=0.0, range_min=0, max_length=8)
    assert len(kept()) == 2 * len(before)  # of anchors and of passages
    fresh = mined(embedder, tmp_path / "fresh", margin=0.0, range_min=0)
    assert again.pairs("asymmetric", "gazeta").equals(fresh.pairs("asymmetric", "gazeta"))


def test_the_run_s_own_base_mines_after_it_was_made(tmp_path: Path) -> None:
    prepared = mined("base", tmp_path, margin=None)
    manifest = json.loads((prepared.folder / "manifest.json").read_text())
    base = json.loads((tmp_path / "bases/tiny/manifest.json").read_text())
    assert manifest["inputs"]["base"] == base["fingerprint"]
    line = prepared.ledger["gazeta"]["mined"]
    assert line["negatives"] > 0 and line["revision"] == f"this run's, {base['fingerprint'][:12]}"


def test_init_may_mine_where_it_counts_other_texts_and_runs_before_data() -> None:
    mine = ["profile=tiny", "data.mining.model=init", "data.sources.gazeta.negatives=mine"]
    with pytest.raises(UserError, match=r"can't be init, whose corpora count the pairs .* \(config key data.mining"):
        application.composed(*mine)
    config = application.composed(*mine, "init=notebook")
    assert in_order(config)[:2] == ["init", "data"]
    assert in_order(application.composed("profile=tiny"))[:2] == ["data", "init"]
    assert [(what, found) for what, found, _ in check_auxiliary_models(config)] == [
        ("data.mining.model: init", "this run's")
    ]


def test_rows_whose_score_says_that_they_are_no_pair_get_no_negative(embedder: Path, tmp_path: Path) -> None:
    config = composed("data.dev.anchors=0")
    config.data.sources = {"terra": config.data.sources["terra"]}
    config.data.sources["terra"].negatives = "mine"
    config.data.mining.model, config.data.mining.margin = str(embedder), None
    prepared = run_config(config, tmp_path)
    pairs = prepared.pairs("symmetric", "terra")
    assert 0 < (pairs["score"] < 1).sum() < len(pairs)
    assert (pairs["negatives"].list.len() > 0).to_list() == (pairs["score"] == 1).to_list()
    nearest = {(anchor, positive, *negatives[:1]) for anchor, positive, negatives, _ in pairs.iter_rows()}
    samples = prepared.ledger["terra"]["mined"]["samples"]
    assert len(samples) == 5 and {tuple(sample.values()) for sample in samples} <= nearest


@pytest.mark.parametrize(("name", "both_ways"), [("terra", True), ("gazeta", False)])
def test_a_pair_of_a_symmetric_set_is_known_from_both_its_texts(
    name: str, both_ways: bool, embedder: Path, tmp_path: Path
) -> None:
    """(река, лес) is a pair, and река a positive elsewhere: of the three passages only гора may be лес's negative."""
    config = composed(f"data.mining.model={embedder}", f"runs={tmp_path}")
    config.data.mining.margin, config.data.mining.range_min, config.data.mining.negatives = None, 0, 3
    rows = {"anchor": ["река", "лес", "море"], "positive": ["лес", "гора", "река"], "negatives": [[], [], []]}
    pl.DataFrame(rows, schema_overrides={"negatives": pl.List(pl.String)}).write_parquet(tmp_path / "set.parquet")
    samples = mine(tmp_path / "set.parquet", name, config)["samples"]
    negatives = pl.read_parquet(tmp_path / "set.parquet")["negatives"].to_list()
    assert [sample["negative"] for sample in samples] == [found[0] for found in negatives if found]
    assert [set(found) for found in negatives] == [{"гора"}, set() if both_ways else {"река"}, {"лес", "гора"}]


def test_pairs_of_one_anchor_share_its_known_texts() -> None:
    """Else 100,000 texts of 50 classes would take 200 million numbers."""
    texts = [f"текст {number}" for number in range(40)]
    pairs = pl.DataFrame({"anchor": ["Чистый класс", "чистый класс!"] * 20, "positive": texts})
    known = known_texts(pairs, {text: number for number, text in enumerate(texts)}, both_ways=False)
    assert known[0].tolist() == [*range(40)] and all(other is known[0] for other in known)


def test_an_answer_to_the_same_question_in_other_letters_is_not_a_negative(embedder: Path, tmp_path: Path) -> None:
    config = composed(f"data.mining.model={embedder}", f"runs={tmp_path}")
    config.data.mining.margin, config.data.mining.range_min, config.data.mining.negatives = None, 0, 4
    rows = {"anchor": ["Ёлка", "елка?", "море"], "positive": ["лес", "гора", "Лес!"], "negatives": [[], [], []]}
    pl.DataFrame(rows, schema_overrides={"negatives": pl.List(pl.String)}).write_parquet(tmp_path / "set.parquet")
    mine(tmp_path / "set.parquet", "gazeta", config)
    assert pl.read_parquet(tmp_path / "set.parquet")["negatives"].to_list() == [[], [], ["гора"]]


def test_configured_prompts_precede_anchors_and_passages(embedder: Path, tmp_path: Path) -> None:
    """They find what texts that begin with them find."""
    path = Path(__file__).parents[2] / "data/samples/IlyaGusev/gazeta/gazeta_train.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[:12]]
    prompt = rows[0]["text"][:40] + " "

    def found(before_anchor: str, before_passage: str, **prompts: str) -> list[str]:
        config = composed(f"data.mining.model={embedder}", f"runs={tmp_path}")
        config.data.mining.margin, config.data.mining.range_min = None, 0
        for name, value in prompts.items():
            setattr(config.data.mining, name, value)
        pairs = [(before_anchor + row["title"], before_passage + row["text"][:30], []) for row in rows]
        schema = {"anchor": pl.String, "positive": pl.String, "negatives": pl.List(pl.String)}
        pl.DataFrame(pairs, schema=schema, orient="row").write_parquet(tmp_path / "set.parquet")
        mine(tmp_path / "set.parquet", "gazeta", config)
        negatives = pl.read_parquet(tmp_path / "set.parquet")["negatives"].to_list()
        return [text.removeprefix(before_passage) for texts in negatives for text in texts]

    assert found(prompt, "") == found("", "", query_prompt=prompt) != found("", "")
    assert found("", prompt) == found("", "", passage_prompt=prompt) != found("", "")


def test_a_set_without_positive_pairs_gets_none_and_the_log_says_so(
    embedder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = composed(f"data.mining.model={embedder}", f"runs={tmp_path}")
    rows = {"anchor": ["река", "лес"], "positive": ["гора", "море"], "negatives": [[], []], "score": [0.1, 0.4]}
    schema = {"anchor": pl.String, "positive": pl.String, "negatives": pl.List(pl.String), "score": pl.Float32}
    pl.DataFrame(rows, schema=schema).write_parquet(tmp_path / "terra.parquet")
    assert mine(tmp_path / "terra.parquet", "terra", config)["negatives"] == 0
    assert "terra: no row is a positive pair" in caplog.text
    assert pl.read_parquet(tmp_path / "terra.parquet")["negatives"].to_list() == [[], []]


def test_a_missing_model_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data.mining.model: neither a folder nor a Hub id \(.*nowhere at main\)"):
        mined(tmp_path / "nowhere", tmp_path)


def test_a_mining_model_on_an_unreachable_hub_fails_the_check(tmp_path: Path) -> None:
    config = composed("data.sources.gazeta.negatives=mine", "data.mining.model=someone/miner")
    ((what, found, problem),) = check_auxiliary_models(config)
    assert (what, found) == ("data.mining.model: someone/miner", "FAILED")
    assert problem and "data.mining.model: the Hub can't be reached" in problem.line


def test_negatives_belong_to_the_set(embedder: Path, tmp_path: Path) -> None:
    pairs = mined(embedder, tmp_path, range_min=0, margin=None, negatives=2).pairs("asymmetric", "gazeta")
    assert set(pairs["negatives"].explode()) <= set(pairs["positive"])
    assert pl.Series(pairs["negatives"].list.len()).to_list() == [2] * len(pairs)
