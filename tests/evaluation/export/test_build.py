"""The stage `export`: exports return torch's embeddings, and those that don't are refused."""

import importlib
import importlib.util
import logging
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from sentence_transformers.util import pairwise_cos_sim
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from configs.schema.config import Config
from data.pair_files import PairWriter
from evaluation.export import build, graphs
from evaluation.export.build import agreement, calibration, require_agreement, timed, weight, write_format
from evaluation.export.formats import FORMATS
from evaluation.export.graphs import GraphEmbedder
from pipeline.application import composed
from pipeline.chain import CHAIN
from pipeline.core import models
from pipeline.core.artefact import PARTIAL, files_under, read_manifest
from pipeline.core.console import log
from pipeline.core.embedding import Embedder
from pipeline.core.errors import UserError
from pipeline.core.seeding import generator
from pipeline.stage import folder_and_manifest, run_stage
from tests.evaluation.conftest import MakeModel
from tests.support.sample_run import finish, write_run
from tests.support.zoo import animal

TERMS = {"ледоход": "движение льда весной", "омут": "глубокую яму на дне реки", "жерех": "речную рыбу"}
TEXTS = ["Пароход идёт вверх по реке.", "Чайник", "Осенью птицы улетают на юг, а зимой в саду тихо."]


@pytest.fixture(scope="module")
def samples(model_folder: Path) -> np.ndarray:
    return timed(Embedder(SentenceTransformer(str(model_folder), device="cpu")))[0]


def test_embeddings_of_the_samples_come_in_pairs(model_folder: Path, samples: np.ndarray) -> None:
    model = SentenceTransformer(str(model_folder), device="cpu")
    first = model.encode_query(["Мальчик гоняет мяч во дворе.", "Во дворе мальчик гоняет мяч."])
    np.testing.assert_allclose(samples[:2], first, atol=1e-5)
    assert not np.allclose(samples[120], samples[121])  # the first paraphrase


def test_the_same_embeddings_agree_and_lengths_don_t_count(samples: np.ndarray) -> None:
    measured = agreement(3 * samples, samples)
    assert measured["cosine mean"] == pytest.approx(1) and measured["cosine min"] == pytest.approx(1)
    assert measured["correlation of pairs' cosines"] == pytest.approx(1)


def test_vectors_of_another_width_have_no_cosine_and_a_rotation_keeps_the_pairs_(
    samples: np.ndarray, tmp_path: Path
) -> None:
    width = samples.shape[1]
    turned = samples @ np.linalg.qr(generator(1, "turn").normal(size=(width, width)))[0]
    wide = np.hstack([turned, np.zeros((len(turned), 3))])
    measured = agreement(wide, samples)
    assert "cosine mean" not in measured and measured["correlation of pairs' cosines"] == pytest.approx(1, abs=1e-4)
    require_agreement("static", measured, tmp_path)
    own, cosines = agreement(turned, samples), (turned * samples).sum(axis=1)
    assert measured["bytes a vector"] == 4 * (width + 3) and own["cosine mean"] < 0.5
    assert (own["cosine mean"], own["cosine min"]) == (pytest.approx(cosines.mean()), pytest.approx(cosines.min()))
    require_agreement("static", own, tmp_path)
    with pytest.raises(UserError, match="onnx is too far from torch: cosine mean"):
        require_agreement("onnx", own, tmp_path)


def test_the_correlation_is_that_of_the_cosines_of_all_pairs(samples: np.ndarray) -> None:
    scaled = samples * generator(2, "scales").normal(size=samples.shape[1])
    first, last = (
        [pairwise_cos_sim(of[:pairs:2], of[1:pairs:2]) for of in (scaled, samples)] for pairs in (2 * 60, 210)
    )
    measured = agreement(scaled, samples)["correlation of pairs' cosines"]
    assert measured == pytest.approx(np.corrcoef(*last)[0, 1], abs=1e-4)
    assert measured != pytest.approx(np.corrcoef(*first)[0, 1], abs=1e-3)


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_too_far_from_torch_is_refused(name: str, samples: np.ndarray, tmp_path: Path) -> None:
    require_agreement(name, agreement(samples, samples), tmp_path)
    for wrong in (generator(1, "noise").normal(size=samples.shape), np.full_like(samples, np.nan)):
        with pytest.raises(UserError, match=f"the export {name} is too far from torch"):
            require_agreement(name, agreement(wrong, samples), tmp_path)


def test_each_form_is_measured_and_one_with_other_vectors_ends_the_stage(
    model_folder: Path,
    samples: np.ndarray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = write_run(tmp_path / "runs", model_folder)
    shutil.copytree(config.folder("merge") / "model", config.model_folder("heads"))
    finish(config, "heads", {})
    config.export.formats, written = list(FORMATS), list[tuple[object, ...]]()
    graph, own = config.folder("export") / "onnx" / "model.onnx", SentenceTransformer(str(model_folder), device="cpu")

    def write(name: str, folder: Path, target: Path, original: Embedder, *further: Path | None) -> None:
        print("a node")
        print("a node", file=sys.stderr)
        written.append((name, folder, original.max_length, *further))
        place = target / FORMATS[name].place / ("weights" if name == "static" else "")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(b"graph")

    def load(name: str, place: Path, model: SentenceTransformer, max_length: int) -> np.ndarray:
        assert (place, max_length) == (config.folder("export") / FORMATS[name].place, 100)
        return found[name]

    found = dict.fromkeys(FORMATS, samples) | {"static": np.pad(samples, ((0, 0), (0, 3)))}
    monkeypatch.setattr(models, "usable_gpus", lambda: 1)  # not used here
    monkeypatch.setattr(build, "LENGTH", 100)
    monkeypatch.setattr(build, "require_packages", lambda formats: None)
    monkeypatch.setattr(build, "write_format", write)
    monkeypatch.setattr(build, "load_format", load)
    monkeypatch.setattr(build, "timed", lambda of: (samples, 50.0) if isinstance(of, Embedder) else (of, 70.0))
    metrics = run_stage(CHAIN["export"], config).metrics
    called = (config.model_folder("heads"), 100, config.folder("data"))
    assert written == [(name, *called, None if name == "onnx" else graph) for name in FORMATS]
    captured = capsys.readouterr()
    assert "a node" not in captured.out + captured.err
    parameters = sum(weights.numel() for weights in own.parameters())
    assert (metrics["torch bytes"], metrics["torch bytes a vector"]) == (4 * parameters, 4 * 32)
    assert metrics["texts"] == 2 * (60 + 45) + 16 and metrics["onnx-int8 cosine min"] == pytest.approx(1)
    assert [metrics[f"{name} bytes"] for name in FORMATS] == [5] * 4 and metrics["static bytes a vector"] == 4 * 35
    assert (metrics["torch texts per second"], metrics["onnx texts per second"]) == (50.0, 70.0)

    config.export.formats, found["onnx"] = ["onnx"], samples[::-1]
    with pytest.raises(UserError, match="the export onnx is too far from torch"):
        run_stage(CHAIN["export"], config)


def test_after_an_error_of_an_exporter_logging_continues() -> None:
    with pytest.raises(MemoryError), build.silent():
        assert not log.isEnabledFor(logging.WARNING)
        raise MemoryError
    assert log.isEnabledFor(logging.WARNING)


@pytest.mark.parametrize("name", FORMATS)
def test_a_form_is_written_to_its_place_and_one_in_8_bits_from_a_plain_graph(
    name: str, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called, folder, place = list[tuple[Any, ...]](), tmp_path / "model", tmp_path / FORMATS[name].place
    for writer in ("write_onnx", "write_onnx_int8", "write_openvino_int8", "write_static"):
        monkeypatch.setattr(graphs, writer, lambda *given, writer=writer: called.append((writer, *given)))
    monkeypatch.setattr(build, "calibration", lambda *given: given)
    original = Embedder(SentenceTransformer(str(model_folder), device="cpu"))
    for graph in (tmp_path / "model.onnx", None):
        write_format(name, folder, tmp_path, original, tmp_path, graph)
    writer = f"write_{name.replace('-', '_')}"
    assert place.parent.is_dir()
    if name in ("onnx", "static"):
        assert called == [(writer, folder, place)] * 2
        return
    (first, (plain, source, temporary), last) = called
    texts = [(original, tmp_path)] if name == "openvino-int8" else []
    assert first == (writer, tmp_path / "model.onnx", place, *texts)
    assert (plain, source, last) == ("write_onnx", folder, (writer, temporary, place, *texts))
    assert temporary.parent.parent == tmp_path and not temporary.parent.exists()


def test_the_graph_returns_torch_s_embeddings_and_keeps_its_weights_inside_if_they_fit(
    model_folder: Path, samples: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[tuple[tuple[Any, ...], dict[str, Any]]]()
    monkeypatch.setattr(torch.onnx, "export", lambda *args, **settings: asked.append((args, settings)))
    for limit in (1e9, 1.0):
        monkeypatch.setattr(graphs, "ONE_FILE", limit)
        graphs.write_onnx(model_folder, tmp_path)
    assert [settings["external_data"] for _, settings in asked] == [False, True]
    module, batch, _ = asked[0][0]
    model = SentenceTransformer(str(model_folder), device="cpu")
    embedder = GraphEmbedder(
        model, lambda inputs: module(**{k: torch.from_numpy(v) for k, v in inputs.items()}).numpy()
    )
    monkeypatch.setattr(build, "time", SimpleNamespace(perf_counter=iter((10.0, 13.0)).__next__))
    found, rate = timed(embedder)
    np.testing.assert_allclose(found, samples, atol=1e-5)
    assert rate == round(len(samples) / 3, 1)
    assert (batch[1] == (batch[0] != model.tokenizer.pad_token_id)).all() and not batch[1].all()


def test_calibration_texts_are_inputs_of_one_document_each(model_folder: Path, tmp_path: Path) -> None:
    for part in ("asymmetric", "dev"):
        write_dev_texts(tmp_path / part / "terms.parquet")
    model = SentenceTransformer(str(model_folder), device="cpu")
    found = calibration(Embedder(model), tmp_path)
    texts = [f"passage: Словом «{word}» называют {of}." for word, of in TERMS.items()]
    assert len(found) >= len(texts)
    for inputs, text in zip(found, texts, strict=False):
        assert inputs["input_ids"].tolist() == model.tokenizer([text])["input_ids"]
        assert inputs["attention_mask"].tolist() == model.tokenizer([text])["attention_mask"]


def test_a_form_s_bytes_are_those_of_all_its_files(tmp_path: Path) -> None:
    sizes = {"model.onnx": 1, "model.onnx.data": 2, "model_int8.onnx": 4, "static/0/model": 8, "static/config": 16}
    for name, size in sizes.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * size)
    found = [weight(tmp_path / name) for name in ("model.onnx", "model_int8.onnx", "static")]
    assert found == [3, 4, 24]


def test_a_model_without_layers_is_refused(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = StaticEmbedding(Tokenizer(WordLevel({"<unk>": 0}, unk_token="<unk>")), embedding_dim=4)
    monkeypatch.setattr(build, "require_packages", lambda formats: None)
    monkeypatch.setattr(build, "load_folder", lambda *_: SentenceTransformer(modules=[table], device="cpu"))
    with pytest.raises(UserError, match="StaticEmbedding has no layers to export"):
        run_stage(CHAIN["export"], write_run(tmp_path / "runs", model_folder))


def test_a_model_that_has_no_table_of_static_embeddings_is_named(tmp_path: Path) -> None:
    pytest.importorskip("model2vec", reason="the extra 'export' is not installed")
    with pytest.raises(UserError, match=r"model2vec can't distil it: .*leave static out"):
        graphs.write_static(animal("T5"), tmp_path / "static")


def test_missing_packages_are_named(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = write_run(tmp_path / "runs", model_folder)
    config.export.formats, names = ["onnx", "onnx-int8", "static"], "onnx onnxscript onnxruntime model2vec skeletoken"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=rf"exporting needs {names.replace(' ', ', ')} .*pip install {names}, or"):
        run_stage(CHAIN["export"], config)


@pytest.mark.parametrize("formats", ["[onnx,onnx]", "[]", "[onnx,tflite]"])
def test_formats_that_make_no_sense_are_refused_at_the_start(formats: str) -> None:
    with pytest.raises(UserError, match=r"config key export\.formats"):
        composed("profile=tiny", "stages=[export]", f"export.formats={formats}")


def load_by_the_card_s_line(config: Config, name: str, model: SentenceTransformer) -> np.ndarray:
    """Embeddings of TEXTS by only the libraries, without this repository."""
    loaded = eval(FORMATS[name].line.format(folder=config.folder("export")), _libraries(name))
    batch = model.tokenizer([model.prompts["query"] + text for text in TEXTS], padding=True, return_tensors="np")
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    return loaded.run(None, inputs)[0] if name.startswith("onnx") else loaded(inputs)[0]


def _libraries(name: str) -> dict[str, object]:
    module = {"onnx": "onnxruntime", "openvino": "openvino"}.get(name.partition("-")[0])
    return {module: importlib.import_module(module)} if module else {"SentenceTransformer": SentenceTransformer}


def write_dev_texts(path: Path) -> None:
    rows = [(f"Что такое {word}?", f"Словом «{word}» называют {of}.", []) for word, of in TERMS.items()]
    schema = {"anchor": pl.String, "positive": pl.String, "negatives": pl.List(pl.String)}
    path.parent.mkdir()
    with PairWriter(path, scored=False) as file:
        file.write(pl.DataFrame(rows, schema=schema, orient="row"))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FORMATS if name != "static"])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_an_export_returns_the_embeddings_of_torch(
    name: str, pooling: str, make_model: MakeModel, tmp_path: Path
) -> None:
    for package in FORMATS[name].packages:
        pytest.importorskip(package, reason="the extra export")
    folder = make_model(pooling=pooling)
    config = write_run(tmp_path / "runs", folder)
    for part in ("asymmetric", "dev"):
        write_dev_texts(config.folder("data") / part / "terms.parquet")
    config.export.formats = [name]
    run_stage(CHAIN["export"], config)
    manifest, model = read_manifest(config.folder("export")), SentenceTransformer(str(folder), device="cpu")
    assert manifest and manifest.metrics[f"{name} bytes"] > 0
    found, theirs = load_by_the_card_s_line(config, name, model), model.encode_query(TEXTS)
    least = 0.99999 if name == "onnx" else 0.9
    assert (found * theirs).sum(axis=1).min() > least and manifest.metrics[f"{name} cosine min"] <= 1 + 1e-6


@pytest.mark.slow
def test_what_a_kill_left_is_neither_read_nor_kept(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in FORMATS["onnx"].packages:
        pytest.importorskip(package, reason="the extra export")
    config, seen = write_run(tmp_path / "runs", make_model()), list[Path]()
    config.export.formats, original = ["onnx-int8", "onnx"], graphs.write_onnx_int8
    folder, manifest = folder_and_manifest(CHAIN["export"], config)
    (folder.path / "onnx").mkdir(parents=True)
    (folder.path / "onnx" / "model.onnx").write_bytes(b"the first half of a graph")
    manifest.write(folder.path)  # whose status is running
    before = set(files_under(folder.path))

    def write(graph: Path, target: Path) -> None:
        original(graph, target)
        seen.extend(set(files_under(folder.path)) - before)

    monkeypatch.setattr(graphs, "write_onnx_int8", write)
    made = run_stage(CHAIN["export"], config)
    assert len(seen) == 2  # graph and form; _begin clears such folders
    assert all(path.relative_to(folder.path).parts[0].endswith(PARTIAL) for path in seen)
    assert set(made.outputs) == {"onnx/model.onnx", "onnx/model_int8.onnx"}


@pytest.mark.slow
def test_static_embeddings_are_those_of_single_words_without_layers(model_folder: Path, tmp_path: Path) -> None:
    for package in FORMATS["static"].packages:
        pytest.importorskip(package, reason="the extra export")
    original = Embedder(SentenceTransformer(str(model_folder), device="cpu"))
    write_format("static", model_folder, tmp_path, original, None)
    loaded = eval(FORMATS["static"].line.format(folder=tmp_path), {"SentenceTransformer": SentenceTransformer})
    one, other, both = loaded.encode(["чайник", "река", "чайник река"])
    pieces = [len(loaded.tokenize([text])["input_ids"]) for text in ("чайник", "река")]
    np.testing.assert_allclose(both * sum(pieces), one * pieces[0] + other * pieces[1], atol=1e-4)
    assert np.linalg.norm(one - other) > 1e-3
