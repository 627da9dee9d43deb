"""The stage `export`: exports return torch's embeddings, and those that don't are refused."""

import importlib
import importlib.util
import logging
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from configs.schema.config import Config
from data.pair_files import PairWriter
from evaluation.export import build, graphs
from evaluation.export.build import agreement, require_agreement, timed, write_format
from evaluation.export.formats import FORMATS
from pipeline.chain import CHAIN
from pipeline.core.artefact import PARTIAL, files_under, read_manifest
from pipeline.core.embedding import Embedder
from pipeline.core.errors import UserError
from pipeline.core.seeding import generator
from pipeline.stage import folder_and_manifest, run_stage
from tests.evaluation.conftest import MakeModel
from tests.support.runs import run_main
from tests.support.sample_run import write_run

TERMS = {"ледоход": "движение льда весной", "омут": "глубокую яму на дне реки", "жерех": "речную рыбу"}
TEXTS = ["Пароход идёт вверх по реке.", "Чайник", "Осенью птицы улетают на юг, а зимой в саду тихо."]


@pytest.fixture(scope="module")
def samples(model_folder: Path) -> np.ndarray:
    return timed(Embedder(SentenceTransformer(str(model_folder), device="cpu")))[0]


def test_embeddings_of_the_samples_come_in_pairs(model_folder: Path, samples: np.ndarray) -> None:
    model = SentenceTransformer(str(model_folder), device="cpu")
    first = model.encode_query(["Мальчик гоняет мяч во дворе.", "Во дворе мальчик гоняет мяч."])
    np.testing.assert_allclose(samples[:2], first, atol=1e-5)


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


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_too_far_from_torch_is_refused(name: str, samples: np.ndarray, tmp_path: Path) -> None:
    require_agreement(name, agreement(samples, samples), tmp_path)
    for wrong in (generator(1, "noise").normal(size=samples.shape), np.full_like(samples, np.nan)):
        with pytest.raises(UserError, match=f"the export {name} is too far from torch"):
            require_agreement(name, agreement(wrong, samples), tmp_path)


def test_a_form_with_other_vectors_ends_the_stage_and_logging_continues(
    make_model: MakeModel, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, other = write_run(tmp_path / "runs", model_folder), make_model(seed=2, pooling="mean")
    config.export.formats = ["onnx"]
    monkeypatch.setattr(build, "require_packages", lambda formats: None)
    monkeypatch.setattr(build, "write_format", lambda name, folder, target, *_: (target / "model.onnx").touch())
    monkeypatch.setattr(build, "load_format", lambda *_, **__: Embedder(SentenceTransformer(str(other), device="cpu")))
    with pytest.raises(UserError, match="the export onnx is too far from torch"):
        run_stage(CHAIN["export"], config)
    assert logging.getLogger("pipeline").isEnabledFor(logging.WARNING)


def test_a_model_without_layers_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = StaticEmbedding(Tokenizer(WordLevel({"<unk>": 0}, unk_token="<unk>")), embedding_dim=4)
    monkeypatch.setattr(build, "require_packages", lambda formats: None)
    monkeypatch.setattr(build, "load_folder", lambda *_: SentenceTransformer(modules=[table], device="cpu"))
    with pytest.raises(UserError, match="StaticEmbedding has no layers to export"):
        run_stage(CHAIN["export"], write_run(tmp_path / "runs"))


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = write_run(tmp_path / "runs")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"exporting needs onnx, onnxscript, onnxruntime .*pip install onnx"):
        run_stage(CHAIN["export"], config)


@pytest.mark.parametrize("formats", ["[onnx,onnx]", "[]", "[onnx,tflite]"])
def test_formats_that_make_no_sense_are_refused_at_the_start(formats: str, tmp_path: Path) -> None:
    ended = run_main("profile=tiny", f"runs={tmp_path}", "stages=[export]", f"export.formats={formats}")
    assert ended.status == 2 and ended.err.count("\n") == 1 and "export.formats" in ended.err


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
