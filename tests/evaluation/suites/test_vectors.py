"""Cut and quantised vectors: as the libraries make them, compared with full ones item by item, not tuned on test."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import quantize_embeddings

from configs.schema.config import Config
from data.artefact import read_dev_sets, read_held_out_set, read_pair_set, set_files
from evaluation.encoder import Encoder
from evaluation.outcome import read_outcome
from evaluation.scoring import Scorer
from evaluation.suites.retrieval import outcome_of, read_retrieval_set
from evaluation.suites.sample_files import read_samples
from evaluation.suites.vectors import BINARY, FLOAT, INT8, Form, StoredPairs, calibration_texts
from pipeline.application import composed
from pipeline.chain import CHAIN
from pipeline.core.embedding import DOCUMENT, QUERY
from pipeline.core.errors import UserError
from pipeline.core.seeding import generator
from pipeline.run import make
from tests.evaluation.conftest import MakeModel
from tests.support import prepared_data
from tests.support.runs import read_csv

SUITE = "evaluation.suite.vectors"
TEXTS = ["Трамвай звенит на повороте.", "Снег скрипит под ногами", "Пирог остывает на окне, пока дети играют во дворе."]


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return unit(generator(3, "vectors").normal(size=(200, 36))).astype(np.float32)


def test_a_cut_vector_is_the_one_that_truncate_dim_gives_scaled_to_length_1(model_folder: Path) -> None:
    full = SentenceTransformer(str(model_folder), device="cpu").encode(TEXTS)
    short = SentenceTransformer(str(model_folder), device="cpu", truncate_dim=12)
    np.testing.assert_allclose(Form(12).cut(full), short.encode(TEXTS, normalize_embeddings=True), atol=1e-6)


@pytest.mark.parametrize("precision", [FLOAT, INT8, BINARY])
@pytest.mark.parametrize("dimensions", [None, 16, 20])
def test_a_form_has_the_size_of_the_library_s_codes(
    precision: str, dimensions: int | None, vectors: np.ndarray
) -> None:
    name = "ubinary" if precision == BINARY else precision
    codes = np.asarray(quantize_embeddings(vectors[:, :dimensions], name))
    assert Form(dimensions, precision).bytes_of(36) == codes.nbytes / len(codes)


def test_one_bit_a_dimension_orders_texts_as_the_hamming_distance_does(vectors: np.ndarray) -> None:
    stored = Form(precision=BINARY).stored(vectors, vectors)
    different = (vectors[:, None] > 0) != (vectors[None] > 0)
    np.testing.assert_allclose(stored @ stored.T, 1 - 2 * different.mean(axis=2), atol=1e-6)


@pytest.mark.parametrize("dimensions", [None, 12])
def test_eight_bits_are_off_by_half_a_step_at_most_and_what_is_beyond_the_range_is_clipped(
    dimensions: int | None, vectors: np.ndarray
) -> None:
    wanted = unit(vectors[:, :dimensions])
    low, high = wanted[:150].min(axis=0), wanted[:150].max(axis=0)
    stored = Form(dimensions, INT8).stored(vectors, vectors[:150])
    # The decoded vector is the unit vector times one factor, which the next lines divide out.
    inside = np.clip(wanted, low, high)
    scale = (stored * inside).sum(axis=1, keepdims=True) / (stored**2).sum(axis=1, keepdims=True)
    step = (high - low) / 255
    assert (np.abs(stored * scale - inside) <= 0.75 * step).mean() > 0.99
    assert np.abs(stored - wanted).max() > step.max()  # else nothing was clipped, and the range was not tested


def test_other_ranges_rescore_eight_bits_and_nothing_else() -> None:
    for precision in (INT8, BINARY):
        one, other = (StoredPairs("vectors", "sts", "data", Form(None, precision), [text]) for text in TEXTS[:2])
        assert (one.settings != other.settings) == (precision == INT8)


def test_without_training_texts_the_stored_ones_set_the_range_of_eight_bits(embedder: Encoder) -> None:
    task = StoredPairs("vectors", "sts", "data", Form(None, INT8), [])
    _, stored = task.vectors(cast(Scorer, SimpleNamespace(encoder=embedder)), TEXTS, TEXTS, QUERY)
    vectors = embedder.sentences(TEXTS)
    np.testing.assert_array_equal(stored, task.form.stored(vectors, vectors))


@pytest.fixture(scope="module")
def scored(make_model: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> Config:
    runs = tmp_path_factory.mktemp("runs")
    model = make_model(seed=1, folder=runs / "models" / "first")
    config = prepared_data.composed(
        f"runs={runs}", "evaluation.chain=[]", "evaluation.suites=[vectors]", f"{SUITE}.dimensions=[8]",
        f"evaluation.models=[{model}]",
    )  # fmt: skip
    for stage in ("data", "evaluate"):
        make(stage, config)
    return config


def test_every_form_of_every_set_is_a_task_with_its_interval(scored: Config) -> None:
    rows = read_csv(scored.folder("evaluate") / "scores.csv")
    names = ("full", "8", "int8", "8-int8", "binary", "8-binary")
    wanted = {
        (of + form, metric) for of, metric in (("panorama-", "ndcg_at_10"), ("sts-", "spearman")) for form in names
    }
    assert {(row["task"], row["metric"]) for row in rows} == wanted and len(rows) == len(wanted)
    assert all(float(row["ci_low"]) <= float(row["score"]) <= float(row["ci_high"]) for row in rows)


def test_a_form_s_difference_from_full_vectors_is_tested_in_pairs(scored: Config) -> None:
    folder = scored.folder("evaluate")
    scores = {(row["model"], row["task"]): float(row["score"]) for row in read_csv(folder / "scores.csv")}
    own = [row for row in read_csv(folder / "comparison.csv") if " on " in row["against"]]
    assert len(own) == 2 * 5 and {row["against"] for row in own if row["task"] == "sts-8"} == {"first on sts-full"}
    rng = np.random.default_rng(0)
    for row in own:
        of = row["task"].partition("-")[0]
        change = scores[row["model"], row["task"]] - scores[row["model"], f"{of}-full"]
        assert float(row["difference"]) == pytest.approx(change, abs=2e-6)
        if of == "sts":
            continue
        one, other = (
            read_outcome(folder / "predictions" / row["model"] / "vectors" / f"{task}.parquet").columns["ndcg_at_10"]
            for task in (row["task"], f"{of}-full")
        )
        drawn = rng.integers(0, len(one), (4000, len(one)))
        low, high = np.percentile((one - other)[drawn].mean(axis=1), [2.5, 97.5])
        assert float(row["ci_low"]) == pytest.approx(low, abs=0.15 * (high - low) + 1e-6)
        assert float(row["ci_high"]) == pytest.approx(high, abs=0.15 * (high - low) + 1e-6)


def test_texts_are_encoded_once_for_all_forms_and_queries_are_compared_as_they_are(
    scored: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    from evaluation.evaluate import chosen_tasks
    from evaluation.models import scored_models
    from pipeline.core.artefact import StageFolder

    data = scored.folder("data")
    stage = StageFolder("evaluate", scored.folder("evaluate"), "", {"data": data})
    with Scorer(scored_models(scored)[0], scored) as scorer:
        encoded: list[int] = []
        encode, embed = scorer.encoder.encode, scorer.encoder.sentences
        monkeypatch.setattr(scorer.encoder, "encode", lambda ids, *rest: encoded.append(len(ids)) or encode(ids, *rest))
        found = {task.name: task.score(scorer).columns for task in chosen_tasks(scored, stage)}
        assert (
            len(found) == 12 and len(encoded) <= 6
        )  # queries, documents, two sides of pairs, calibration in two roles
        held_out, rows = read_retrieval_set(data, "panorama"), read_samples("sts")
        for form in (Form(8, INT8), Form(8, BINARY)):
            ranges = [embed(calibration_texts(data, role), role) for role in (QUERY, DOCUMENT)]
            queries = Form(8).cut(embed(held_out.queries, QUERY))
            stored = form.stored(embed(held_out.candidates, DOCUMENT), ranges[1])
            cosines = scorer.encoder.model.similarity(queries, stored).numpy()
            gained = outcome_of(held_out, cosines.__getitem__).columns["ndcg_at_10"]
            np.testing.assert_allclose(found[f"panorama-{form.name}"]["ndcg_at_10"], gained)
            first, second = (embed([row[key] for row in rows], QUERY) for key in ("sentence1", "sentence2"))
            cosines = (Form(8).cut(first) * form.stored(second, ranges[0])).sum(axis=1)
            np.testing.assert_allclose(found[f"sts-{form.name}"]["prediction"], cosines, atol=1e-6)


def test_ranges_come_from_dev_texts_and_not_from_held_out_ones(scored: Config) -> None:
    data = scored.folder("data")
    held_out, dev = read_held_out_set(data, "panorama", "asymmetric"), read_dev_sets(data)
    for role, column in ((QUERY, "anchors"), (DOCUMENT, "positives")):
        texts = calibration_texts(data, role)
        assert 50 < len(texts) <= 300 and not {*texts} & {*getattr(held_out, column)}
        assert {*texts} >= {text for pairs in dev for text in getattr(pairs, column)}  # so few are they here
        assert all({*texts} & {*getattr(read_pair_set(path, side), column)} for side, path in set_files(data))


def test_more_dimensions_than_the_model_has_are_refused(scored: Config) -> None:
    config = prepared_data.composed(
        f"runs={scored.runs}", "run=wide", "evaluation.chain=[]", "evaluation.suites=[vectors]",
        f"evaluation.models=[{scored.evaluation.models[0]}]", f"{SUITE}.dimensions=[64]", f"{SUITE}.precisions=[]",
    )  # fmt: skip
    shutil.copytree(scored.folder("data"), config.folder("data"))
    with pytest.raises(UserError, match=r"first has 32 dimensions, not 64 \(config key evaluation.suite.vectors.dim"):
        make("evaluate", config)


def test_suites_that_score_no_vectors_know_nothing_of_their_forms() -> None:
    evaluate, benchmarks = (
        CHAIN[stage].settings(composed("profile=bge_m3_ours", "evaluation.suites=[card_30,vectors]"))
        for stage in ("evaluate", "benchmarks")
    )
    suites = evaluate["evaluation"]["suite"]
    assert "dimensions" in suites["vectors"] and "dimensions" not in suites["card_30"]
    assert "dimensions" not in benchmarks["suites"]["card_30"]  # or every set would be prepared again
