"""Model folders: their files, their tokenizer, and how to obtain one; the model itself is not loaded."""

from collections.abc import Iterable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from tokenizers import Tokenizer

from pipeline.core.artefact import read_json, write_json
from pipeline.core.console import log
from pipeline.core.errors import UserError, first_line
from pipeline.core.hub import hub_errors, hub_model, local_model, readable_revision

# Raised by the libraries for a file's contents or a device; UnpicklingError by torch for files with more than tensors.
RAISED_BY_FILES = (
    OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, ImportError, AssertionError,
    UnpicklingError, EOFError,
)  # fmt: skip
# The files read from a Hub model's repository; torch's only if it has no others.
HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*_linear.pt"]
TORCH_FILES = "pytorch_model*.bin"
EXPORT_FOLDERS = ("onnx", "openvino", "static")  # of a published model: its exports
EXPORT_PATTERNS = [f"{folder}/*" for folder in EXPORT_FOLDERS]
MODULES_FILE = "modules.json"
POOLING_KEYS = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
HEADS = ("sparse_linear.pt", "colbert_linear.pt")  # bge-m3's sparse and multi-vector outputs
HEADS_RECORD = "heads.json"  # next to heads that this pipeline fitted: the fingerprint of their encoder
# What stages leave in a model's folder in addition to the model.
STAGE_FILES = ("manifest.json", "certificate.json", "README.md", "vocabulary", "units")
REMEDY = "give a sentence-transformers folder, or make the model again"
OTHER_NAMES = {  # of sizes in config.json: the usual one -> DistilBERT's and T5's
    "hidden_size": ("dim", "d_model"),
    "num_hidden_layers": ("n_layers", "num_layers"),
    "num_attention_heads": ("n_heads", "num_heads"),
    "intermediate_size": ("hidden_dim", "d_ff"),
}
PROBE = "Съешь ещё этих мягких французских булок, да выпей чаю №1: “quick” brown fox."


def has_heads(folder: Path) -> bool:
    """Whether the folder has bge-m3's two heads."""
    return all((folder / name).is_file() for name in HEADS)


def write_dtype(folder: Path, dtype: str) -> None:
    """Set the dtype of the weights, such as float32, in config.json: transformers loads them in it."""
    config = read_json(folder / "config.json")
    stated = {config.get(name) for name in ("dtype", "torch_dtype")} - {None}  # the latter before transformers 5
    if stated != {dtype}:
        config.pop("torch_dtype", None)
        write_json(folder / "config.json", config | {"dtype": dtype})


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a `tokenizer.json` without the truncation and padding set in the file.

    Both belong to a call, and many published files contain the settings of an earlier one. Raises UserError.
    """
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises a bare Exception for a missing or malformed file
        what, remedy = f"can't read the tokenizer: {error}", "make or download the model again"
        raise UserError(what, where=str(path), remedy=remedy) from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def resolve_model(wanted: str, mirror: str | None, key: str, revision: str = "main") -> tuple[Path, str]:
    """The folder of a model from outside the run, and its origin: local folder, mirror, or commit on the Hub.

    `wanted` names a folder, else one in the mirror, else a Hub id with an optional `@<revision>`, which is downloaded
    into the local cache if needed. Raises UserError if there is none; `key` is the config key that names the model.
    """
    asked, folder = hub_model(wanted, revision), local_model(wanted, mirror)
    if folder:
        return folder, f"mirror of {asked.revision}" if asked else "local folder"
    from huggingface_hub import snapshot_download

    assert asked
    hub = asked.hub
    with hub_errors(key, f"{hub} at {asked.revision}", key):
        commit = readable_revision(asked)
        files = Path(snapshot_download(hub, revision=commit, allow_patterns=HUB_FILES, ignore_patterns=EXPORT_PATTERNS))
        has_better = {path.parent.relative_to(files).as_posix() for path in files.rglob("*.safetensors")}
        useless = [TORCH_FILES if place == "." else f"{place}/{TORCH_FILES}" for place in has_better]
        ignored = [*EXPORT_PATTERNS, *useless]
        snapshot_download(hub, revision=commit, allow_patterns=f"*{TORCH_FILES}", ignore_patterns=ignored)
    log.info("%s at commit %s", hub, files.name)
    return files, files.name  # the snapshot's folder is named after its commit


def listed_modules(folder: Path) -> list[tuple[str, str]]:
    """(class, relative folder) of each module of a model folder; empty if it has no list of modules.

    Raises UserError if the list can't be read, or points outside the folder.
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


def encoder_config(folder: Path) -> dict[str, Any]:
    """The encoder's config.json, with the sizes also under their usual names."""
    config = read_json(folder / "config.json")
    found = {usual: config[name] for usual, names in OTHER_NAMES.items() for name in names if name in config}
    return found | config


def require_width(dimensions: Iterable[int], width: int, key: str) -> None:
    """Raise UserError if vectors of `width` are to be cut at more dimensions; `key` is the config key of what cuts."""
    if (most := max(dimensions, default=0)) > width:
        what = f"{most} dimensions are more than the base's {width}"
        raise UserError(what, where=f"config key {key}.dimensions", remedy=f"use at most {width}")


def transformer_folder(folder: Path) -> Path:
    """The folder of the encoder's files: the model's folder itself, or one inside such as the old `0_Transformer`."""
    modules = listed_modules(folder)
    return folder / modules[0][1] if modules else folder
