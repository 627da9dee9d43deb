"""What the code never does: unpickle, run code of a model or a config, read the Hub unpinned, unpack archives."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGES = ("benchmarks", "configs", "data", "evaluation", "merging", "pipeline", "training")
PRODUCT = PACKAGES[1:]
UNPICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
# What torch raises for a file with more than tensors; this program's processes that pass arrays to each other.
HARMLESS = {"UnpicklingError", "Parallel", "delayed", "parallel_config"}
HUB_READS = {"hf_hub_download", "snapshot_download", "model_info", "dataset_info", "repo_info", "list_repo_files"}
LOADERS = {"from_pretrained", "SentenceTransformer", "load_dataset", "CrossEncoder"}


def parsed(repository: Path, packages: tuple[str, ...]) -> Iterator[tuple[Path, ast.Module]]:
    for package in packages:
        for path in sorted((repository / package).rglob("*.py")):
            yield path.relative_to(repository), ast.parse(path.read_text(encoding="utf-8"))


def calls(repository: Path, packages: tuple[str, ...] = PACKAGES) -> Iterator[tuple[str, str, ast.Call]]:
    """(place, the called name with what precedes it, the call) of every call."""
    for path, tree in parsed(repository, packages):
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                yield f"{path}:{node.lineno}", ast.unparse(node.func), node


def given(call: ast.Call, name: str) -> str | None:
    """A keyword argument's source text."""
    return next((ast.unparse(keyword.value) for keyword in call.keywords if keyword.arg == name), None)


def test_nothing_is_unpickled(repository: Path) -> None:
    found = []
    for path, tree in parsed(repository, PACKAGES):
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            if isinstance(node, ast.ImportFrom):
                names = [] if set(names) <= HARMLESS else [str(node.module)]
            found += [f"{path}: {name}" for name in names if name.partition(".")[0] in UNPICKLERS]
    assert found == []


def test_torch_and_numpy_load_only_numbers(repository: Path) -> None:
    loads = [(place, name, call) for place, name, call in calls(repository) if name in ("torch.load", "np.load")]
    assert loads
    for place, name, call in loads:
        assert name != "torch.load" or given(call, "weights_only") == "True", place
        assert given(call, "allow_pickle") in (None, "False"), place


def test_no_foreign_code_is_run(repository: Path) -> None:
    for place, name, call in calls(repository):
        assert name not in ("eval", "exec", "compile", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load"), place
        assert given(call, "trust_remote_code") in (None, "False"), place
        assert given(call, "shell") in (None, "False"), place


def test_every_read_of_the_hub_has_a_revision(repository: Path) -> None:
    seen = 0
    for place, name, call in calls(repository, PRODUCT):
        short = name.rpartition(".")[2]
        if short in HUB_READS:
            assert given(call, "revision"), place
            seen += 1
        if short in LOADERS and not given(call, "modules"):
            assert given(call, "revision") or given(call, "local_files_only") == "True", place
            seen += 1
    assert seen > 8


def test_archives_are_streamed_and_never_unpacked(repository: Path) -> None:
    for place, name, call in calls(repository):
        short = name.rpartition(".")[2]
        assert short not in ("extractall", "unpack_archive") or given(call, "filter") == "'data'", place
        assert name not in ("zipfile.ZipFile", "archive.extract"), place


@pytest.mark.parametrize("line", ["import pickle", "from joblib import load", "from pickle import loads"])
def test_the_search_finds_what_it_looks_for(line: str, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "bad.py").write_text(f"{line}\nimport torch\ntorch.load('x')\n")
    with pytest.raises(AssertionError):
        test_nothing_is_unpickled(tmp_path)
    with pytest.raises(AssertionError):
        test_torch_and_numpy_load_only_numbers(tmp_path)
