"""Fixtures shared by all tests: offline, one thread per process, real data where available."""

import gc
import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TQDM_DISABLE", "1")  # read when tqdm is imported: the libraries' bars are not error lines
os.environ.setdefault("WANDB_MODE", "offline")

import pytest
from filelock import FileLock

from tests.support.composing import keep_compositions
from tests.support.pieces import keep_pieces
from tests.support.runs import REPOSITORY, copied, make

keep_compositions()
keep_pieces()
gc.disable()  # while tests are collected: what they import is no garbage

for name in [name for name in os.environ if name in ("ARGS", "MFLAGS") or name.startswith("MAKE")]:
    del os.environ[name]  # set by `make test ARGS=...`, not meant for the makes that tests start


def pytest_collection_finish() -> None:
    """Tests collect garbage as commands do."""
    gc.enable()


_imported = 0  # number of modules when their objects were last frozen


def pytest_runtest_setup() -> None:
    """Freeze what imports leave, a million objects that are never garbage: the product often collects garbage."""
    global _imported
    if len(sys.modules) > _imported + 200:
        _imported = len(sys.modules)
        gc.collect()
        gc.freeze()


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout's root: configs, samples and modules are below it."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real Russian data; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("USER_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("no real data: set USER_SHARED_DATA to its folder")
    return folder


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs with the finished run `tiny` and its base; made once, even for several test workers."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    runs = shared / "chain"
    with FileLock(shared / "chain.lock"):
        if not (runs / "tiny" / "report" / "index.html").is_file():
            make("profile=tiny", f"runs={runs}", "launch.config=none")
    return runs


@pytest.fixture
def run_folder(chain: Path, tmp_path: Path) -> Path:
    """`runs/tiny` below the test's own folder: a copy of the finished run that a test may change freely."""
    return copied(chain, tmp_path / "runs")


@pytest.fixture(scope="session")
def flag_embedding(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The variables under which a fresh process finds FlagEmbedding, installed next to our environment, not in it."""
    from benchmarks.peers import peer_environment
    from pipeline.core.errors import UserError

    try:
        return peer_environment("flagembedding", tmp_path_factory.mktemp("peers"))
    except UserError as error:
        pytest.skip(str(error))
