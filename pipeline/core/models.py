"""Loading a model folder: what can't be loaded, or loads as half of a model, is one line that names it."""

from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from pipeline.core.console import log
from pipeline.core.errors import UserError, first_line
from pipeline.core.hub import Revision, hub_errors, readable_revision

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

# Families whose parameters are called in memory as in the file; of others the library converts names.
PLAIN_NAMES = ("bert", "roberta", "camembert", "xlm-roberta")
# What the libraries raise over a file's contents or a device; torch the last one, over a file with more than tensors.
RAISED_BY_FILES = (
    OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, ImportError, AssertionError,
    UnpicklingError,
)  # fmt: skip
# What is read of a Hub model's repository; torch's files only where it has no others.
HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*_linear.pt", "*/config.json"]
TORCH_FILES = ["*pytorch_model*.bin"]
HEADS = ("sparse_linear.pt", "colbert_linear.pt")  # bge-m3's sparse and multi-vector outputs
# What stages leave in a model's folder beside the model.
NOT_THE_MODEL = ("manifest.json", "certificate.json", "README.md", "vocabulary", "units")
REMEDY = "give a sentence-transformers folder, or make the model again"


def load_folder(
    folder: Path, device: str | None = None, remedy: str = REMEDY, finite: bool = True, **model_kwargs: Any
) -> "SentenceTransformer":
    """The sentence-transformers model of a local folder, in float32, without remote code.

    `device` None takes the fastest.

    Raises:
        UserError: files that can't be read or don't fit each other, code that is not the library's, missing weights
            (transformers would draw them at random), with `finite` a tensor with NaN or infinity.
    """
    import torch
    from safetensors import SafetensorError
    from sentence_transformers import SentenceTransformer

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    kwargs = {"dtype": torch.float32, **model_kwargs}
    try:
        model = SentenceTransformer(
            str(folder), device=device, model_kwargs=kwargs, trust_remote_code=False, local_files_only=True
        )
    except (*RAISED_BY_FILES, SafetensorError) as error:
        raise _unloadable(error, folder, remedy) from error
    if missing := missing_weights(model, folder):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(f"the weights lack the tensor {missing[0]}{more}", where=str(folder), remedy=remedy)
    limit, positions = model.max_seq_length or 0, most_tokens(model)
    if positions is not None and limit > positions:
        what = f"texts of {limit} tokens are let in, but the model has {positions} positions"
        raise UserError(what, where=f"{folder}/sentence_bert_config.json", remedy=f"set max_seq_length to {positions}")
    for name, parameter in model.named_parameters() if finite else ():
        if not torch.isfinite(parameter.sum(dtype=torch.float64)):
            raise UserError(f"the tensor {name} holds NaN or infinity", where=str(folder), remedy=remedy)
    return model


def fetched(hub: str, revision: str, key: str) -> Path:
    """The snapshot of a Hub model in the local cache, downloaded where needed; the folder's name is its commit.

    Raises UserError where there is none to be had; `key` is the config key that names the model.
    """
    from huggingface_hub import snapshot_download

    with hub_errors(key, f"{hub} at {revision}", key):
        commit = readable_revision(Revision("model", hub, revision))
        for patterns in (HUB_FILES, TORCH_FILES):
            files = snapshot_download(hub, revision=commit, allow_patterns=patterns, ignore_patterns=["onnx/*"])
            if any(Path(files).rglob("*.safetensors")):
                break
    log.info("%s at commit %s", hub, Path(files).name)
    return Path(files)


def most_tokens(model: "SentenceTransformer") -> int | None:
    """Tokens for which the encoder has positions, or None where its family is not known to have a table of them."""
    config = getattr(getattr(model[0], "model", None), "config", None)
    if config is None or config.model_type not in PLAIN_NAMES:
        return None
    return config.max_position_embeddings - (0 if config.model_type == "bert" else 2)


def missing_weights(model: "SentenceTransformer", folder: Path) -> list[str]:
    """Parameters of the encoder that the folder's safetensors files don't hold, an unused pooler's apart."""
    from safetensors import safe_open

    encoder = getattr(model[0], "model", None)
    files = list(folder.glob("*.safetensors"))
    if encoder is None or not files or encoder.config.model_type not in PLAIN_NAMES:
        return []
    stored: set[str] = set()
    for file in files:
        with safe_open(file, "pt") as tensors:
            names = [name.replace("gamma", "weight").replace("beta", "bias") for name in tensors.keys()]  # noqa: SIM118
            stored.update(names, (name.partition(".")[2] for name in names))  # with and without the family's prefix
    return [name for name, _ in encoder.named_parameters() if name not in stored and not name.startswith("pooler.")]


def _unloadable(error: Exception, folder: Path, remedy: str) -> UserError:
    return UserError(f"the model can't be loaded: {first_line(error)}", where=str(folder), remedy=remedy)
