"""Fixtures shared by all tests: offline, one thread a process, real data where it is there."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TQDM_DISABLE", "1")  # read when tqdm is imported: bars of the libraries are no error lines
os.environ.setdefault("WANDB_MODE", "offline")

import pytest
from filelock import FileLock

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout's root: configs, samples and modules lie below it."""
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
    """A folder of runs with the finished run `tiny` and its base; made once, also where several workers test."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    runs = shared / "chain"
    command = [sys.executable, "-m", "pipeline.run", "profile=tiny", f"runs={runs}", "launch.config=none"]
    with FileLock(shared / "chain.lock"):
        if not (runs / "tiny" / "report" / "index.html").is_file():
            done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
            assert done.returncode == 0, done.stdout + done.stderr
    return runs


@pytest.fixture(scope="session")
def flag_embedding(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The variables under which a fresh process finds FlagEmbedding, installed beside our environment, not into it."""
    from benchmarks.peers import peer_environment
    from pipeline.core.errors import UserError

    try:
        return peer_environment("flagembedding", tmp_path_factory.mktemp("peers"))
    except UserError as error:
        pytest.skip(str(error))


def copy_of_runs(source: Path, target: Path) -> None:
    """A copy by hard links; without the locks, or two copies would hold each other's."""
    shutil.copytree(source, target, copy_function=os.link, ignore=shutil.ignore_patterns(".locks"))
