"""Publishing: the folder loads, names the sources of its figures, and is uploaded as one commit."""

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, constants

from configs.schema.config import Config
from configs.schema.evaluation import PublishConfig
from configs.schema.init import BaseConfig
from configs.schema.training import HeadsConfig, TrainingConfig
from evaluation.models import is_of_the_model, read_model_facts
from evaluation.publish import largest_difference, upload, write_model
from evaluation.report.record import read_run
from pipeline.chain import CHAIN
from pipeline.core.artefact import read_manifest
from pipeline.core.errors import UserError
from pipeline.core.model_folder import HEADS, HEADS_RECORD, has_heads
from pipeline.stage import run_stage
from tests.support.hub import TOKEN, LocalHub, local_hub
from tests.support.runs import file_names, run_main
from tests.support.sample_run import finish, write_run
from tests.support.small_bases import tiny_model
from tests.support.zoo import animal
from training.bases.hub import make_from_hub

TEXTS = ["Река замерзает в ноябре.", "Рецепт борща"]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    folder = tmp_path_factory.mktemp("publish")
    model = tiny_model(folder / "model")
    (model / "vocabulary").mkdir()
    (model / "vocabulary" / "id_map.parquet").write_bytes(b"PAR1")
    return write_run(folder / "runs", model)


@pytest.fixture(scope="module")
def published(config: Config) -> Path:
    run_stage(CHAIN["publish"], config)
    return config.folder("publish")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    """A Hub on this machine that the Hub's own client talks to, logged in."""
    with local_hub() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield running


def uploading(config: Config, **changes: Any) -> Config:
    settings = PublishConfig(repo="organisation/name", dry_run=False, **changes)
    return dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, publish=settings))


def test_the_folder_loads_in_both_libraries_with_the_merge_s_embeddings(config: Config, published: Path) -> None:
    import numpy as np
    from sentence_transformers import SentenceTransformer

    folder = published / "model"
    theirs = SentenceTransformer(str(config.folder("merge") / "model"), device="cpu").encode(TEXTS)
    np.testing.assert_array_equal(SentenceTransformer(str(folder), device="cpu").encode(TEXTS), theirs)
    assert largest_difference(folder) < 1e-6


def test_the_whole_merged_model_is_uploaded_with_card_licence_and_provenance(config: Config, published: Path) -> None:
    files = file_names(published / "model")
    assert file_names(config.folder("merge") / "model") <= files
    assert {"README.md", "LICENSE", "vocabulary/id_map.parquet", "provenance/stages.json"} <= files
    assert {"provenance/data/ledger.json", "provenance/evaluate/scores.csv", "provenance/merge/weights.json"} <= files


def test_provenance_names_every_stage_and_what_it_was_made_from(config: Config, published: Path) -> None:
    stages = json.loads((published / "model" / "provenance" / "stages.json").read_text())
    assert set(stages) == {"data", "init", "symmetric", "asymmetric", "merge", "evaluate"}
    for name, entry in stages.items():
        manifest = read_manifest(config.folder(name))
        assert manifest and (entry["fingerprint"], entry["inputs"]) == (manifest.fingerprint, manifest.inputs)


def test_heads_of_an_earlier_command_are_not_part_of_a_model_without_heads(config: Config, tmp_path: Path) -> None:
    shutil.copytree(config.runs, tmp_path / "runs")
    own = dataclasses.replace(
        config, runs=str(tmp_path / "runs"), training=TrainingConfig(heads=HeadsConfig(kind="none"))
    )
    shutil.copytree(own.folder("merge") / "model", own.folder("heads") / "model")
    for name in HEADS:
        (own.folder("heads") / "model" / name).write_bytes(b"weights")
    finish(own, "heads", {})
    run_stage(CHAIN["publish"], own)
    folder = own.folder("publish") / "model"
    assert "heads" not in json.loads((folder / "provenance" / "stages.json").read_text())
    assert not has_heads(folder) and "Dense vectors only" in (folder / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("pooling", ["cls", "mean", "lasttoken"])
def test_both_libraries_embed_alike_with_every_pooling(pooling: str) -> None:
    assert read_model_facts(folder := tiny_model(pooling=pooling)).pooling == pooling
    assert largest_difference(folder) <= 1e-5


@pytest.mark.parametrize(("name", "loader"), [("T5", "T5EncoderModel"), ("DistilBERT", "AutoModel")])
def test_both_libraries_embed_alike_with_other_families(name: str, loader: str, tmp_path: Path) -> None:
    make_from_hub(BaseConfig("other", "hub", str(animal(name)), pooling="cls", max_length=64), tmp_path, None)
    assert read_model_facts(tmp_path).loader == loader
    assert largest_difference(tmp_path) <= 1e-5


def test_a_folder_whose_modules_disagree_with_its_weights_is_refused(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "model")
    pooling = folder / "1_Pooling" / "config.json"
    pooling.write_text(json.dumps({"word_embedding_dimension": 16, "pooling_mode_max_tokens": True}))
    with pytest.raises(UserError, match="differ by"):
        largest_difference(folder)


def test_a_run_without_a_merge_can_t_be_published(tmp_path: Path) -> None:
    config = write_run(tmp_path / "runs", stages=("data", "init"))
    with pytest.raises(UserError, match="needs the artefact merge, which is missing"):
        run_stage(CHAIN["publish"], config)


def test_scores_of_an_earlier_merge_are_not_published(tmp_path: Path) -> None:
    config = write_run(tmp_path / "runs")
    manifest = read_manifest(config.folder("merge"))
    assert manifest
    dataclasses.replace(manifest, fingerprint="f" * 64).write(config.folder("merge"))
    with pytest.raises(UserError, match=r"evaluate was built from an earlier merge .*make reproduce"):
        run_stage(CHAIN["publish"], config)
    assert not (config.folder("publish") / "model").exists()


def test_exports_are_uploaded_with_the_model_they_were_made_from_and_no_other(config: Config, tmp_path: Path) -> None:
    shutil.copytree(config.runs, tmp_path / "runs")
    own = dataclasses.replace(config, runs=str(tmp_path / "runs"), force=True)
    (own.folder("export") / "onnx").mkdir(parents=True)
    (own.folder("export") / "onnx" / "model.onnx").write_bytes(b"graph")
    finish(own, "export", {})
    run_stage(CHAIN["publish"], own)
    assert (own.folder("publish") / "model" / "onnx" / "model.onnx").read_bytes() == b"graph"
    assert not is_of_the_model("onnx/model.onnx") and not is_of_the_model("static/model.safetensors")
    manifest = read_manifest(own.folder("export"))
    assert manifest
    dataclasses.replace(manifest, inputs={"merge": "f" * 64}).write(own.folder("export"))
    with pytest.raises(UserError, match=r"export was built from .*: make export, then make reproduce$"):
        run_stage(CHAIN["publish"], own)


@pytest.mark.parametrize("licence", [None, "apache-2.0"])
def test_the_merge_s_own_licence_stays_as_it_is(licence: str | None, tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model")
    (model / "LICENSE").write_text("the base's", encoding="utf-8")
    config = write_run(tmp_path / "runs", model)
    config.evaluation.publish.licence = licence
    run_stage(CHAIN["publish"], config)
    merge, published = (config.folder(stage) / "model" / "LICENSE" for stage in ("merge", "publish"))
    assert merge.read_text(encoding="utf-8") == "the base's" != published.read_text(encoding="utf-8")


def test_a_dry_run_shows_the_files_and_uploads_nothing(
    config: Config, hub: LocalHub, capsys: pytest.CaptureFixture[str]
) -> None:
    run_stage(CHAIN["publish"], dataclasses.replace(config, force=True))
    shown = capsys.readouterr().out
    assert "model.safetensors" in shown and "Dry run: nothing was uploaded" in shown
    assert hub.repositories == {} and hub.commits == []


def test_terms_that_restrict_the_model_are_shown_before_it_is_uploaded(
    config: Config, hub: LocalHub, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("WARNING", "pipeline"):
        run_stage(CHAIN["publish"], dataclasses.replace(config, force=True))
    (logged,) = [line for line in caplog.messages if line.startswith("publish: ")]
    assert "licence other" in logged and logged.endswith("Gazeta: CC-BY-NC-SA-4.0")
    folder = config.folder("publish") / "model"
    assert "Gazeta: CC-BY-NC-SA-4.0" in (folder / "LICENSE").read_text(encoding="utf-8")
    assert ModelCard((folder / "README.md").read_text(encoding="utf-8")).data.license == "other"


def test_another_licence_in_any_case_is_not_attributed_to_sets_where_none_restricts_the_model(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = read_run(config.run_folder)
    monkeypatch.setattr(type(run), "restricted_sets", [])
    own = dataclasses.replace(
        config, evaluation=dataclasses.replace(config.evaluation, publish=PublishConfig(licence="Other"))
    )
    write_model(run, own, tmp_path / "model", "a/b")
    data = ModelCard((tmp_path / "model" / "README.md").read_text(encoding="utf-8")).data
    assert (data.license, data.license_name) == ("other", None) and not (tmp_path / "model" / "LICENSE").exists()
    assert "no LICENSE is uploaded for licence other" in caplog.text


def test_an_upload_is_one_commit_with_every_file(config: Config, hub: LocalHub) -> None:
    run_stage(CHAIN["publish"], uploading(config))
    assert (
        list(hub.repositories) == ["organisation/name"]
        and hub.repositories["organisation/name"]["visibility"] == "private"
    )
    assert len(hub.commits) == 1
    folder = config.folder("publish") / "model"
    local = {name: (folder / name).read_bytes() for name in file_names(folder)}
    assert hub.files["organisation/name"] == local
    card = ModelCard((folder / "README.md").read_text(encoding="utf-8"))
    assert card.data.model_name == "name" and 'SentenceTransformer("organisation/name")' in card.text


def test_an_upload_leaves_no_file_of_an_earlier_model(tmp_path: Path, hub: LocalHub) -> None:
    for name in ("onnx", "vocabulary"):
        (tmp_path / name).mkdir()
    of_vocabulary = ("sentencepiece.bpe.model", "vocab.txt", "vocabulary/id_map.parquet")
    gone = ("onnx/model.onnx", *HEADS, HEADS_RECORD, *of_vocabulary, "pytorch_model.bin")
    by_hand = ("picture.png", "LICENSE")
    for name in ("model.safetensors", *gone):
        (tmp_path / name).write_bytes(b"first")
    upload(tmp_path, "organisation/name", private=True)
    hub.files["organisation/name"] |= dict.fromkeys(by_hand, b"added by hand")
    for name in gone:
        (tmp_path / name).unlink()
    (tmp_path / "model.safetensors").write_bytes(b"second")
    upload(tmp_path, "organisation/name", private=True)
    left = {"model.safetensors": b"second"} | dict.fromkeys(by_hand, b"added by hand")
    assert hub.files["organisation/name"] == left and len(hub.commits) == 2


def test_a_refused_upload_says_why(tmp_path: Path, hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(UserError, match=r"publish: .*40[14].*check your access"):
        upload(tmp_path, "organisation/name", private=True)
    with pytest.raises(UserError, match=r"publish: neither a folder nor a Hub id .*correct evaluation\.publish\.repo"):
        upload(tmp_path, "organisation/two words", private=True)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"publish: the Hub can't be reached .*check the network, then run again"):
        upload(tmp_path, "organisation/name", private=True)


def test_uploading_needs_a_name(config: Config) -> None:
    overrides = ["profile=tiny", f"run={config.run}", f"runs={config.runs}", "evaluation.publish.dry_run=false"]
    ended = run_main("stages=[publish]", *overrides)
    where = "config key evaluation.publish.repo"
    assert ended.status == 2
    assert ended.err.startswith(f"error: must be given to upload, as organisation/name ({where})")
