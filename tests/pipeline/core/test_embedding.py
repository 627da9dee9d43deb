"""Embeddings are the library's own, whatever the batches, each text encoded once, float32 after the encoder."""

import copy
import io
import itertools
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling

from pipeline.core.embedding import DOCUMENT, QUERY, Embedder, EmbeddingCache, length_batches
from pipeline.core.errors import UserError
from pipeline.core.models import load_folder
from pipeline.core.packed import use_packed
from tests.support.small_bases import tiny_model

TEXTS = ["Река замерзает.", "Когда открыли первый музей в этом городе?", "  Рецепт борща ", "Да", "Река замерзает."]
LONG = "Длинный рассказ о том, как смотритель маяка чинил механизм. " * 40
PROMPTS = {"query": "query: ", "document": "passage: "}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> SentenceTransformer:
    folder = tiny_model(
        tmp_path_factory.mktemp("model"), 1, hidden=32, vocabulary=1500, prompts=PROMPTS, max_length=128, pooling="mean"
    )
    return load_folder(folder, "cpu").eval()


def passes(model: SentenceTransformer) -> list[int]:
    """Texts in each pass of the encoder from now on."""
    seen: list[int] = []
    model[0].register_forward_pre_hook(lambda module, given: seen.append(len(given[0]["input_ids"])))
    return seen


@pytest.mark.parametrize("budget", [16, 10**5])
def test_embeddings_are_the_library_s_whatever_the_batches(model: SentenceTransformer, budget: int) -> None:
    embedder = Embedder(model, token_budget=budget)
    for role in (QUERY, DOCUMENT):
        theirs = model.encode([*TEXTS, LONG], prompt_name=role)
        np.testing.assert_allclose(embedder.embed([*TEXTS, LONG], embedder.prompt(role)), theirs, atol=1e-6)


@pytest.mark.parametrize("include_prompt", [True, False])
def test_a_packed_model_has_the_embeddings_of_padded_texts(model: SentenceTransformer, include_prompt: bool) -> None:
    pooling = Pooling(model.get_embedding_dimension(), pooling_mode="mean", include_prompt=include_prompt)
    padded = SentenceTransformer(modules=[model[0], pooling, Normalize()], device="cpu")
    packed = copy.deepcopy(padded)
    use_packed(packed)
    theirs = padded.encode([*TEXTS, LONG], prompt="query: ")
    embedder = Embedder(packed, token_budget=200)
    seen = passes(packed)
    np.testing.assert_allclose(embedder.embed([*TEXTS, LONG], "query: "), theirs, atol=1e-6)
    assert seen == [1, 1], "each pass is one row, of several texts"


def test_texts_are_cut_at_the_smaller_limit(model: SentenceTransformer) -> None:
    assert [max(map(len, Embedder(model, limit).tokenise([LONG]))) for limit in (8, None, 4000)] == [8, 128, 128]


def test_a_prompt_that_leaves_nothing_of_a_text_is_refused(model: SentenceTransformer) -> None:
    assert len(Embedder(model, 9).embed(TEXTS, "query: ")) == len(TEXTS)
    with pytest.raises(UserError, match=r"nothing is left of a text that is cut at 128 tokens, .*prompt 'Длинный"):
        Embedder(model).embed(TEXTS, LONG)


def test_the_default_prompt_is_used_where_no_role_has_its_own(model: SentenceTransformer) -> None:
    other = SentenceTransformer(
        modules=list(model), device="cpu", prompts={"task": "task: "}, default_prompt_name="task"
    )
    assert Embedder(other).prompt(None) == "task: "
    np.testing.assert_allclose(Embedder(other).embed(TEXTS, "task: "), other.encode(TEXTS), atol=1e-6)


def test_every_distinct_text_is_encoded_once(model: SentenceTransformer) -> None:
    embedder, seen = Embedder(model, cache=EmbeddingCache()), passes(model)
    first = embedder.embed(TEXTS)
    second = embedder.embed([TEXTS[3], "Новый текст", TEXTS[0]])
    assert sum(seen) == 5
    np.testing.assert_array_equal(second[[0, 2]], first[[3, 4]])


def test_embeddings_stay_on_disk_for_the_next_run(model: SentenceTransformer, tmp_path: Path) -> None:
    wanted = Embedder(model, cache=EmbeddingCache(tmp_path)).embed(TEXTS, "query: ")
    seen, again = passes(model), Embedder(model, cache=EmbeddingCache(tmp_path))
    np.testing.assert_array_equal(again.embed(TEXTS, "query: "), wanted)
    assert not seen
    assert (
        sum(len(again.embed(TEXTS, prompt)) for prompt in ("", "passage: ")) == 10 and sum(seen) == 8
    )  # other prompts
    Embedder(model, 9, cache=EmbeddingCache(tmp_path)).embed(TEXTS, "query: ")
    assert sum(seen) == 12  # another length is another embedding


def test_a_stopped_encoding_continues_from_what_was_kept(model: SentenceTransformer, tmp_path: Path) -> None:
    texts, seen = [f"Река замёрзла {number:03}" for number in range(1000)], passes(model)  # of 17 characters

    def stop(*_: object) -> None:
        if sum(seen) > 600:
            raise KeyboardInterrupt

    hook = model[0].register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        Embedder(model, token_budget=64, cache=EmbeddingCache(tmp_path)).embed(texts)
    hook.remove()
    seen.clear()
    found = Embedder(model, token_budget=64, cache=EmbeddingCache(tmp_path)).embed(texts)
    assert sum(seen) == 1000 - (128 * 64 - 1) // 17
    assert len(list(tmp_path.rglob("*.npz"))) == 3  # each is waited for until the disk has it
    np.testing.assert_allclose(found, Embedder(model).embed(texts), atol=1e-6)


def test_runs_that_fill_one_cache_at_once_lose_nothing(tmp_path: Path) -> None:
    caches = [EmbeddingCache(tmp_path) for _ in range(4)]
    texts = [[f"{number // 2} {part}" for part in range(3)] for number in range(48)]  # each is added twice

    def fill(number: int) -> None:
        caches[number % 4].missing("kind", texts[number])
        caches[number % 4].add("kind", texts[number], {"sentence": np.full((3, 2), number // 2)})

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(fill, range(48)))
    kept = EmbeddingCache(tmp_path)
    assert kept.missing("kind", [text for batch in texts for text in batch]) == []
    rows = kept.rows("kind", [batch[0] for batch in texts], ["sentence"])["sentence"]
    assert rows[:, 0].tolist() == [number // 2 for number in range(48)]


def test_files_of_two_runs_that_share_texts_give_each_text_its_own_vector(tmp_path: Path) -> None:
    texts = ["изба", "амбар", "мельница", "колодец"]
    vectors = np.arange(8).reshape(4, 2)
    runs = {chosen: EmbeddingCache(tmp_path) for chosen in itertools.combinations(range(4), 2)}
    for run in runs.values():
        assert run.missing("kind", texts) == texts  # before any of them has written
    for chosen, run in runs.items():
        run.add("kind", [texts[index] for index in chosen], {"own": vectors[list(chosen)]})
    read = EmbeddingCache(tmp_path)
    assert read.missing("kind", texts) == []
    np.testing.assert_array_equal(read.rows("kind", texts, ["own"])["own"], vectors)


def test_of_many_files_only_those_of_the_wanted_texts_are_read(tmp_path: Path) -> None:
    texts, written = [f"дом {number}" for number in range(8)], EmbeddingCache(tmp_path)
    for number, text in enumerate(texts):
        written.missing("kind", [text])
        written.add("kind", [text], {"own": np.full((1, 200_000), number, np.float32)})
    read = EmbeddingCache(tmp_path)
    tracemalloc.start()
    try:
        assert read.missing("kind", [texts[5], "сад"]) == ["сад"]
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 2 * 800_000  # of eight files
    assert read.rows("kind", [texts[5]], ["own"])["own"].tolist() == [[5] * 200_000]


def archive(**arrays: np.ndarray) -> bytes:
    np.savez(file := io.BytesIO(), allow_pickle=False, **arrays)
    return file.getvalue()


NOT_OURS = archive(own=np.ones((1, 2)))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"not an archive", NOT_OURS])
def test_a_damaged_file_s_texts_are_encoded_again(content: bytes, tmp_path: Path) -> None:
    for texts, value in ((["изба", "амбар"], 1), (["колодец"], 2)):
        written = EmbeddingCache(tmp_path)
        written.add("kind", written.missing("kind", texts), {"own": np.full((len(texts), 2), value)})
    (damaged,) = (file for file in tmp_path.rglob("*.npz") if len(np.load(file)["keys"]) == 1)
    damaged.write_bytes(content)
    damaged.with_suffix(".npz.partial").write_bytes(content)
    read = EmbeddingCache(tmp_path)
    assert read.missing("kind", ["изба", "колодец", "амбар"]) == ["колодец"]
    np.testing.assert_array_equal(read.rows("kind", ["амбар"], ["own"])["own"], [[1, 1]])


def test_batches_hold_all_texts_within_the_budget() -> None:
    lengths = np.random.default_rng(0).integers(1, 300, 500).tolist()
    batches = list(length_batches(lengths, 512))
    assert sorted(index for batch in batches for index in batch) == list(range(500))
    longest, texts = [max(lengths[index] for index in batch) for batch in batches], [*map(len, batches)]
    assert texts[:-1] == [512 // most for most in longest[:-1]] and texts[-1] <= 512 // longest[-1]
    assert longest == sorted(longest, reverse=True)  # texts of one length side by side, so with little padding
    assert list(length_batches([9, 0, 600, 9], 512)) == [[2], [0, 3, 1]]  # longer texts get their own, none is lost


@pytest.mark.parametrize("how", ["weights in bfloat16", "autocast"])
def test_after_a_bfloat16_encoder_everything_is_float32(model: SentenceTransformer, how: str, tmp_path: Path) -> None:
    folder = tiny_model(tmp_path, 2, hidden=32, vocabulary=1500, max_length=128)
    encoder = load_folder(folder, "cpu")[0]
    torch.manual_seed(0)
    after = [Pooling(32, pooling_mode="mean"), Dense(32, 16), Normalize()]
    mixed = SentenceTransformer(modules=[encoder, *after], device="cpu")
    whole = mixed.encode(TEXTS)
    if how == "weights in bfloat16":
        encoder.to(torch.bfloat16)
    embedder, seen = Embedder(mixed, precision="bf16"), list[torch.dtype]()
    for module in after:
        module.register_forward_hook(lambda _, given, made: seen.append(made["sentence_embedding"].dtype))
    ours = embedder.embed(TEXTS)
    assert ours.dtype == np.float32 and seen and set(seen) == {torch.float32}
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-6)  # 1e-3 where bfloat16 is scaled
    assert 0 < np.abs(ours - whole).max() < 0.05


def test_a_full_device_is_one_line_that_says_what_to_set(model: SentenceTransformer) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    hook = model[0].register_forward_pre_hook(full)
    try:
        with pytest.raises(UserError, match=r"full with 8192 tokens.*key token_budget.*set token_budget=4096"):
            Embedder(model, token_budget=8192).embed(TEXTS)
    finally:
        hook.remove()


@pytest.mark.parametrize(("on_disk", "again"), [(False, 3), (True, 0)])
def test_vectors_beyond_the_bound_are_forgotten_and_computed_again(
    model: SentenceTransformer, on_disk: bool, again: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.core.embedding.MOST_BYTES", 0)
    embedder, seen = Embedder(model, cache=EmbeddingCache(tmp_path if on_disk else None)), passes(model)
    first = embedder.embed(TEXTS)
    assert sum(seen) == 4  # one of the five texts occurs twice
    seen.clear()
    np.testing.assert_allclose(embedder.embed(TEXTS[:3]), first[:3], atol=1e-6)
    assert sum(seen) == again
