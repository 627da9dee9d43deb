"""bge-m3's other two abilities: scores by hand, through mteb, and equal before and after shrinking."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from datasets import Dataset

from configs.schema.evaluation import MtebTaskConfig, SuiteConfig
from evaluation.encoder import Encoder
from evaluation.outcome import Outcome
from evaluation.suites.heads import sparse_vectors, token_vectors
from evaluation.suites.mteb_run import MultiVectorHead, mteb_encoder, run_task
from evaluation.suites.mteb_tasks import hub_task
from evaluation.suites.sample_files import read_samples
from pipeline.core.errors import UserError
from pipeline.core.heads import Heads, read_heads, translated
from pipeline.core.model_folder import HEADS
from tests.evaluation.conftest import MakeModel
from training.vocabulary.shrinking import shrink, write_id_map
from training.vocabulary.tokenizer_file import TokenizerFile

DOCUMENTS = [row["document"][:400] for row in read_samples("long_documents")]
QUERIES = [text[30:120] for text in DOCUMENTS]
TEXTS = [*QUERIES, *DOCUMENTS, *(row["sentence1"] for row in read_samples("sts"))]
KINDS = ("dense", "sparse", "multi_vector", "hybrid")


@pytest.fixture(scope="module")
def base(make_model: MakeModel) -> Path:
    """A random base with heads, without prompts, as bge-m3 has it."""
    folder = make_model(seed=5, prompts={"query": "", "document": ""}, pooling="cls")
    torch.manual_seed(3)
    torch.save(torch.nn.Linear(32, 1).state_dict(), folder / HEADS[0])
    torch.save(torch.nn.Linear(32, 24).state_dict(), folder / HEADS[1])
    return folder


@pytest.fixture(scope="module")
def init(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base with the vocabulary that the texts need, so that every text is covered."""
    folder = tmp_path_factory.mktemp("init")
    tokenizer = Encoder(base).tokenizer
    kept = {token for text in TEXTS for token in tokenizer(text)["input_ids"]} | set(tokenizer.all_special_ids)
    pieces, tokens = TokenizerFile.read(base / "tokenizer.json"), np.array(sorted(kept))
    shrink(base, folder, pieces, tokens)
    (folder / "vocabulary").mkdir()
    write_id_map(folder / "vocabulary" / "id_map.parquet", pieces, tokens, {})
    return folder


@pytest.fixture(scope="module")
def loaded(base: Path, init: Path) -> dict[str, tuple[Encoder, Heads]]:
    return {name: (Encoder(folder), read_heads(folder)) for name, folder in (("base", base), ("init", init))}


def retrieval(kind: str, model: tuple[Encoder, Heads], name: str, folder: Path) -> Outcome:
    encoder, heads = model
    task = hub_task("RuBQRetrieval", SuiteConfig(), MtebTaskConfig(), None)
    test = {
        "corpus": Dataset.from_list([{"id": f"d{n}", "title": "", "text": text} for n, text in enumerate(DOCUMENTS)]),
        "queries": Dataset.from_list([{"id": f"q{n}", "text": text} for n, text in enumerate(QUERIES)]),
        "relevant_docs": {f"q{n}": {f"d{n}": 1} for n in range(len(QUERIES))},
        "top_ranked": None,
    }
    task.dataset, task.data_loaded = {"default": {"test": test}}, True
    scorer: Any = SimpleNamespace(encoder=encoder, heads=heads, key=name)
    return run_task(mteb_encoder(scorer, kind), task, ["ndcg_at_10", "recall_at_100"], folder)


@pytest.mark.parametrize("kind", KINDS)
def test_retrieval_through_mteb_is_the_same_after_init_on_covered_text(
    kind: str, loaded: dict[str, tuple[Encoder, Heads]], tmp_path: Path
) -> None:
    before, after = (retrieval(kind, loaded[name], name, tmp_path) for name in ("base", "init"))
    assert loaded["init"][0].config.vocab_size < loaded["base"][0].config.vocab_size
    np.testing.assert_allclose(*(outcome.columns["ndcg_at_10:value"] for outcome in (before, after)), atol=1e-6)
    assert before.measures[0].score > 0.2


@pytest.mark.parametrize("kind", ["multi_vector", "hybrid"])
def test_a_corpus_whose_tokens_are_too_many_for_the_memory_is_scored_in_parts(
    kind: str, loaded: dict[str, tuple[Encoder, Heads]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = retrieval(kind, loaded["base"], "whole", tmp_path)
    monkeypatch.setattr("evaluation.suites.mteb_run.HELD_TOKENS", 3 * 130)  # of documents of 128 tokens
    at_once: list[int] = []
    encoded = MultiVectorHead._encode
    monkeypatch.setattr(MultiVectorHead, "_encode", lambda *args, **options: noted(encoded(*args, **options)))

    def noted(vectors: list[torch.Tensor]) -> list[torch.Tensor]:
        at_once.append(sum(map(len, vectors)))
        return vectors

    parts = retrieval(kind, loaded["base"], "parts", tmp_path)
    assert parts.measures[0].score == pytest.approx(whole.measures[0].score)
    assert len(at_once) >= 1 + len(DOCUMENTS) / 3 and max(at_once[1:]) <= 3 * 130


def test_the_kinds_do_not_share_a_cached_result(loaded: dict[str, tuple[Encoder, Heads]], tmp_path: Path) -> None:
    scores = {retrieval(kind, loaded["base"], "base", tmp_path).measures[0].score for kind in KINDS}
    assert len(scores) >= 3  # the best two find everything
    assert len(list((tmp_path / "results").rglob("RuBQRetrieval.json"))) == 4


def test_sparse_scores_are_the_formula_token_by_token(loaded: dict[str, tuple[Encoder, Heads]]) -> None:
    encoder, heads = loaded["base"]
    vectors = sparse_vectors(encoder, heads, DOCUMENTS[:3]).toarray()
    tokenizer, state = encoder.tokenizer, heads.sparse.state_dict()
    unused = {tokenizer.cls_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id}
    for text, vector in zip(DOCUMENTS[:3], vectors, strict=True):
        batch = tokenizer(text, truncation=True, max_length=128, return_tensors="pt")
        with torch.no_grad():
            hidden = encoder.model[0].model(**batch).last_hidden_state[0]
        expected: dict[int, float] = {}
        for token, state_of_token in zip(batch["input_ids"][0].tolist(), hidden, strict=True):
            weight = max(0.0, float(state["weight"][0] @ state_of_token + state["bias"][0]))
            if token not in unused:
                expected[token] = max(expected.get(token, 0.0), weight)
        for token, weight in enumerate(vector.tolist()):
            assert weight == pytest.approx(expected.get(token, 0.0), abs=1e-5)


def test_token_vectors_have_length_one_and_leave_the_first_token_out(
    loaded: dict[str, tuple[Encoder, Heads]],
) -> None:
    encoder, heads = loaded["base"]
    encoded = token_vectors(encoder, heads, DOCUMENTS[:2])
    for text, vectors in zip(DOCUMENTS[:2], encoded, strict=True):
        array = np.asarray(vectors)
        tokens = len(encoder.tokenizer(text, truncation=True, max_length=128)["input_ids"])
        assert array.shape == (tokens - 1, 24)
        np.testing.assert_allclose(np.linalg.norm(array, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_heads_are_float32_after_a_bfloat16_encoder(
    kind: str, base: Path, loaded: dict[str, tuple[Encoder, Heads]], tmp_path: Path
) -> None:
    half = Encoder(base, precision="bf16"), loaded["base"][1]
    found, whole = (retrieval(kind, model, "any", tmp_path / str(n)) for n, model in enumerate((half, loaded["base"])))
    assert found.measures[0].score == pytest.approx(whole.measures[0].score, abs=0.05)
    for vectors in token_vectors(*half, TEXTS[:3]):
        np.testing.assert_allclose(vectors.norm(dim=1), 1, atol=1e-6)


def kept_ids(init: Path) -> set[int]:
    return set(pl.read_parquet(init / "vocabulary" / "id_map.parquet")["old_id"])


def test_sparse_vectors_of_the_base_are_translated_into_the_ids_of_init(
    loaded: dict[str, tuple[Encoder, Heads]], init: Path
) -> None:
    vectors = {name: sparse_vectors(*model, DOCUMENTS[:5]).toarray() for name, model in loaded.items()}
    for theirs, ours in zip(vectors["base"], vectors["init"], strict=True):
        weights = {int(piece): theirs[piece] for piece in np.flatnonzero(theirs)}
        found = translated(weights, init / "vocabulary" / "id_map.parquet")
        assert found == {int(piece): pytest.approx(ours[piece], abs=1e-5) for piece in np.flatnonzero(ours)}
    gone = set(range(loaded["base"][0].config.vocab_size)) - kept_ids(init)
    assert gone and translated(dict.fromkeys(gone, 1.0), init / "vocabulary" / "id_map.parquet") == {}


def test_a_model_without_heads_and_broken_heads_are_one_line(base: Path, model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no sparse and multi-vector heads"):
        read_heads(model_folder)
    for name in HEADS:
        torch.save({"weight": torch.zeros(3)}, tmp_path / name)
    with pytest.raises(UserError, match="not the weights of a linear layer"):
        read_heads(tmp_path)
    for name in HEADS:
        torch.save(torch.nn.Linear(32, 24).state_dict(), tmp_path / name)
    with pytest.raises(UserError, match="gives 24 weights a token"):
        read_heads(tmp_path)
