"""Folders of models: what lies in one, its tokenizer, and where it is to be had; the model itself is not opened."""

from pathlib import Path
from pickle import UnpicklingError

from tokenizers import Tokenizer

from pipeline.core.artefact import read_json, write_json
from pipeline.core.console import log
from pipeline.core.errors import UserError, first_line
from pipeline.core.hub import Revision, hub_errors, hub_model, local_model, readable_revision

# What the libraries raise over a file's contents or a device; torch the last one, over a file with more than tensors.
RAISED_BY_FILES = (
    OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, ImportError, AssertionError,
    UnpicklingError, EOFError,
)  # fmt: skip
# What is read of a Hub model's repository; torch's files only where it has no others.
HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*_linear.pt"]
TORCH_FILES = "pytorch_model*.bin"
EXPORT_FOLDERS = ("onnx", "openvino", "static")  # of a published model: other forms of it
EXPORT_PATTERNS = [f"{folder}/*" for folder in EXPORT_FOLDERS]
MODULES_FILE = "modules.json"
HEADS = ("sparse_linear.pt", "colbert_linear.pt")  # bge-m3's sparse and multi-vector outputs
HEADS_RECORD = "heads.json"  # beside heads that this pipeline fitted: the fingerprint of their encoder
# What stages leave in a model's folder beside the model.
STAGE_FILES = ("manifest.json", "certificate.json", "README.md", "vocabulary", "units")
REMEDY = "give a sentence-transformers folder, or make the model again"
PROBE = "Съешь ещё этих мягких французских булок, да выпей чаю №1: “quick” brown fox."


def has_heads(folder: Path) -> bool:
    """Whether bge-m3's two heads lie in the folder."""
    return all((folder / name).is_file() for name in HEADS)


def write_dtype(folder: Path, dtype: str) -> None:
    """Have config.json say that weights are in `dtype`, such as float32: transformers loads them in what it says."""
    config = read_json(folder / "config.json")
    said = {config.get(name) for name in ("dtype", "torch_dtype")} - {None}  # the second until transformers 5
    if said != {dtype}:
        config.pop("torch_dtype", None)
        write_json(folder / "config.json", config | {"dtype": dtype})


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a `tokenizer.json` without the truncation and padding that its file asks for.

    Both belong to a call, and many published files hold those of whoever saved them. Raises UserError.
    """
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises a bare Exception for a missing or malformed file
        raise UserError(f"can't read the tokenizer: {error}", where=str(path), remedy="make the model again") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def resolve_model(wanted: str, mirror: str | None, key: str, revision: str = "main") -> tuple[Path, str]:
    """The folder of a model that is none of the run's own, and where it stood.

    A name is that of a folder, else of one in the mirror, else a Hub id, with an optional `@<revision>`; of the Hub the
    commit is said. Raises UserError where there is none; `key` is the config key that names the model.
    """
    asked, folder = hub_model(wanted, revision), local_model(wanted, mirror)
    if folder:
        return folder, f"mirror of {asked.revision}" if asked else "local folder"
    assert asked
    folder = download_model(asked.hub, asked.revision, key)
    return folder, folder.name


def download_model(hub: str, revision: str, key: str) -> Path:
    """The snapshot of a Hub model in the local cache, downloaded where needed; the folder's name is its commit.

    Raises UserError where there is none to be had; `key` is the config key that names the model.
    """
    from huggingface_hub import snapshot_download

    with hub_errors(key, f"{hub} at {revision}", key):
        commit = readable_revision(Revision("model", hub, revision))
        files = Path(snapshot_download(hub, revision=commit, allow_patterns=HUB_FILES, ignore_patterns=EXPORT_PATTERNS))
        has_better = {path.parent.relative_to(files).as_posix() for path in files.rglob("*.safetensors")}
        useless = [TORCH_FILES if place == "." else f"{place}/{TORCH_FILES}" for place in has_better]
        ignored = [*EXPORT_PATTERNS, *useless]
        snapshot_download(hub, revision=commit, allow_patterns=f"*{TORCH_FILES}", ignore_patterns=ignored)
    log.info("%s at commit %s", hub, files.name)
    return files


def listed_modules(folder: Path) -> list[tuple[str, str]]:
    """(class, relative folder) of each module of a model folder, none where it lists none.

    Raises UserError where the list can't be read, or leads out of the folder.
    """
    if not (folder / MODULES_FILE).is_file():
        return []
    try:
        entries = read_json(folder / MODULES_FILE)
        found = [(entry["type"].rpartition(".")[2], entry["path"]) for entry in entries]
        if not found or any(Path(path).is_absolute() or ".." in Path(path).parts for _, path in found):
            raise ValueError("it lists no modules of this folder")
    except RAISED_BY_FILES as error:
        what = f"can't read {MODULES_FILE}: {first_line(error)}"
        raise UserError(what, where=str(folder), remedy=REMEDY) from error
    return found


def transformer_folder(folder: Path) -> Path:
    """Where the encoder's files lie: the model's folder itself, or one inside such as the old `0_Transformer`."""
    modules = listed_modules(folder)
    return folder / modules[0][1] if modules else folder
