"""Models that are scored or that mine negatives, from a Hub on this machine: pinned, and named by their commit."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from data.fingerprints import model_state
from evaluation.models import further_model
from pipeline.core.hub import Revision, write_lock
from tests.data.sources.test_hub import SETS, arguments
from tests.support.hub import COMMIT, in_place_of_the_hub, local_hub
from tests.support.prepared_data import Prepared, composed, run_config
from tests.support.runs import REPOSITORY, Ended, run_main
from tests.support.small_bases import tiny_base

MINING = ["+source@data.sources.lenta=lenta", "data.sources.lenta.negatives=mine", "data.mining.model=someone/miner"]
MINING += ["data.mining.margin=null"]
SCORING = ["evaluation.chain=[]", "evaluation.suites=[samples]", "evaluation.tasks=[sts]", "evaluation.resamples=100"]
SCORING += ["evaluation.models=[someone/model@v1]"]


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The samples and two models, one of which has only torch's weights, like BAAI/bge-m3 on the Hub."""
    import torch
    from safetensors.torch import load_file

    folder = tmp_path_factory.mktemp("mirror")
    for owner in (REPOSITORY / "data" / "samples").iterdir():
        (folder / owner.name).symlink_to(owner)
    shutil.copytree(tiny_base(), folder / "someone" / "miner")
    model = Path(shutil.copytree(tiny_base(), folder / "someone" / "model"))
    torch.save(load_file(model / "model.safetensors"), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    return folder


@pytest.fixture
def command(mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Ended]]:
    """A module's command, in this process, with a Hub that holds the mirror's files."""
    with local_hub(mirror) as hub:
        in_place_of_the_hub(hub, tmp_path / "cache", monkeypatch)
        yield lambda module, *overrides: run_main(*arguments(tmp_path), *overrides, module=module)


@pytest.fixture
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The test's own lock file, still empty."""
    path = tmp_path / "revisions.lock"
    monkeypatch.setenv("REVISIONS_LOCK", str(path))
    return path


def test_the_models_of_a_config_are_locked_and_a_moved_one_is_refused(
    command: Callable[..., Ended], lock: Path
) -> None:
    done = command("pipeline.lock", *MINING, *SCORING)
    assert done.status == 0, done.err
    assert {f"model someone/miner main {COMMIT}", f"model someone/model v1 {COMMIT}"} <= set(
        lock.read_text().split("\n")
    )
    lock.write_text(f"model someone/model v1 {'f' * 40}\n")
    done = command("pipeline.run", "stages=[evaluate]", *SCORING)
    assert done.status == 2
    assert f"someone/model at v1 is now {COMMIT[:12]}, not the locked {'f' * 12}" in done.err.splitlines()[-1]


def test_a_scored_model_s_commit_is_in_the_manifest(
    command: Callable[..., Ended], mirror: Path, tmp_path: Path
) -> None:
    done = command("pipeline.run", "stages=[evaluate]", *SCORING)
    assert done.status == 0, done.err
    manifest = tmp_path / "runs/test/evaluate/manifest.json"
    assert json.loads(manifest.read_text())["metrics"]["revisions"] == {"someone/model": COMMIT}
    assert further_model("someone/model@v1", str(mirror)).revision == "mirror of v1"


@pytest.mark.slow
def test_a_mining_model_s_commit_is_in_ledger_and_manifest(
    command: Callable[..., Ended], mirror: Path, tmp_path: Path
) -> None:
    done = command("pipeline.run", "stages=[data]", *MINING)
    assert done.status == 0, done.err
    config = composed(*MINING, f"mirror={mirror}", *SETS)
    for prepared, revision in (
        (Prepared(tmp_path / "runs/test/data"), COMMIT),
        (run_config(config, tmp_path / "mirrored"), "mirror of main"),
    ):
        mined = prepared.ledger["lenta"]["mined"]
        assert (mined["model"], mined["revision"]) == ("someone/miner", revision) and mined["negatives"] > 0
        assert f"negatives with someone/miner ({revision})" in (prepared.folder / "ledger.md").read_text()
        metrics = json.loads((prepared.folder / "manifest.json").read_text())["metrics"]
        assert metrics["revisions"]["lenta, mined by someone/miner"] == revision


def test_another_mining_model_is_another_input_of_the_data(lock: Path, mirror: Path) -> None:
    from pipeline.chain import CHAIN

    assert "mining model" not in CHAIN["data"].reads(composed())
    config = composed(*MINING)
    config.mirror = str(mirror)
    before = CHAIN["data"].reads(config)["mining model"]
    (mirror / "someone/miner/README.md").write_text("changed")
    assert CHAIN["data"].reads(config)["mining model"] != before
    config.mirror = None
    unlocked = model_state(config.data.mining.wanted, None)
    write_lock({Revision("model", "someone/miner", "main"): COMMIT})
    assert model_state(config.data.mining.wanted, None) == [*unlocked, COMMIT]
