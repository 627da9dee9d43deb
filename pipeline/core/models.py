"""Opening models and tokenizers, which nothing else does.

A model gives what `SentenceTransformer(folder).encode` gives, or is one line that names what can't be had of it.
"""

import json
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, cast
from zipfile import is_zipfile

from pipeline.core.console import log
from pipeline.core.errors import UserError, first_line
from pipeline.core.hub import Revision, hub_errors, readable_revision

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from tokenizers import Tokenizer

# Families whose parameters are called in memory as in the file; of others the library converts names.
PLAIN_NAMES = ("bert", "roberta", "camembert", "xlm-roberta")
# What the libraries raise over a file's contents or a device; torch the last one, over a file with more than tensors.
RAISED_BY_FILES = (
    OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, ImportError, AssertionError,
    UnpicklingError, EOFError,
)  # fmt: skip
# What is read of a Hub model's repository; torch's files only where it has no others.
HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*_linear.pt"]
TORCH_FILES = "pytorch_model*.bin"
OTHER_RUNTIMES = ["onnx/*", "openvino/*"]
HEADS = ("sparse_linear.pt", "colbert_linear.pt")  # bge-m3's sparse and multi-vector outputs
# What stages leave in a model's folder beside the model.
NOT_THE_MODEL = ("manifest.json", "certificate.json", "README.md", "vocabulary", "units")
REMEDY = "give a sentence-transformers folder, or make the model again"
# Settings of sentence_bert_config.json under which texts become other tokens than by a call of the tokenizer.
UNUSED = ("processing_kwargs", "query_length", "document_length", "query_expansion")
SIDE_TEXTS = ("Река", "Зимой эта река замерзает")  # of different lengths, so that one of them is padded
SIDE_TOLERANCE = 1e-4  # relative to the largest number of the embeddings


def load_folder(
    folder: Path, device: str | None = None, remedy: str = REMEDY, finite: bool = True, **model_kwargs: Any
) -> "SentenceTransformer":
    """The sentence-transformers model of a local folder, in float32, without remote code; it pads on the right.

    `device` None takes the fastest. A folder without modules gets those that the library gives it, with a warning.

    Raises:
        UserError: files that can't be read or don't fit each other, code that is not the library's, missing weights
            (transformers would draw them at random), settings that only the library's `encode` could use, with
            `finite` a tensor with NaN or infinity.
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
    if not model.module_kwargs:
        how = getattr(model[-1], "pooling_mode", "nothing")
        log.warning("%s has no modules of a dense model: sentence-transformers pools its tokens by %s", folder, how)
    if unused := _unused_setting(model):
        raise UserError(f"the model can't be used as it asks for: {unused}", where=str(folder), remedy=remedy)
    if missing := missing_weights(model, folder):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(f"the weights lack the tensor {missing[0]}{more}", where=str(folder), remedy=remedy)
    for name, parameter in model.named_parameters() if finite else ():
        if not torch.isfinite(parameter.sum(dtype=torch.float64)):
            raise UserError(f"the tensor {name} holds NaN or infinity", where=str(folder), remedy=remedy)
    _settle_tokenizer(model, folder)
    return model


def read_tokenizer(path: Path) -> "Tokenizer":
    """The tokenizer of a `tokenizer.json` without the truncation and padding that its file asks for.

    Both belong to a call, and many published files hold those of whoever saved them. Raises UserError.
    """
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises a bare Exception for a missing or malformed file
        raise UserError(f"can't read the tokenizer: {error}", where=str(path), remedy="make the model again") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _settle_tokenizer(model: "SentenceTransformer", folder: Path) -> None:
    """Let the model's tokenizer pad on the right and cut where the positions end, as far as that changes no embedding.

    Raises UserError where more tokens are let in than there are positions, or where the side of the padding matters.
    """
    from transformers import PreTrainedTokenizerBase

    if not isinstance(model.tokenizer, PreTrainedTokenizerBase):
        return  # a static embedding model's, which knows neither; that it cuts texts is part of what it gives
    limit, positions, encoder = model.max_seq_length or 0, most_tokens(model), cast(Any, model[0]).model
    if positions is not None and limit > positions:
        if limit != encoder.config.max_position_embeddings:
            what = f"texts of {limit} tokens are let in, but the model has {positions} positions"
            where, remedy = f"{folder}/sentence_bert_config.json", f"set max_seq_length to {positions}"
            raise UserError(what, where=where, remedy=remedy)
        model.max_seq_length = positions  # the library knows nothing of the positions up to <pad>, which no token has
    if model.tokenizer.padding_side == "left":
        theirs = model.encode(list(SIDE_TEXTS), prompt="", show_progress_bar=False)
        model.tokenizer.padding_side = "right"
        ours = model.encode(list(SIDE_TEXTS), prompt="", show_progress_bar=False)
        if not abs(ours - theirs).max() <= SIDE_TOLERANCE * abs(theirs).max():
            what = "padding_side is left, which moves the model's positions: a text's embedding depends on its batch"
            raise UserError(what, where=f"{folder}/tokenizer_config.json", remedy="set padding_side to right")


def _unused_setting(model: "SentenceTransformer") -> str | None:
    """What of the folder would have no effect outside the library's own `encode`; None where there is nothing."""
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    first: Any = model[0]
    if type(first) is StaticEmbedding:
        return None
    if type(first) is not Transformer:
        return f"modules.json starts with {type(first).__name__}, not with Transformer or StaticEmbedding"
    if "message" in first.modality_config:
        return "modality_config in sentence_bert_config.json wants messages"
    return next((f"{key} in sentence_bert_config.json" for key in UNUSED if getattr(first, key)), None)


def fetched(hub: str, revision: str, key: str) -> Path:
    """The snapshot of a Hub model in the local cache, downloaded where needed; the folder's name is its commit.

    Raises UserError where there is none to be had; `key` is the config key that names the model.
    """
    from huggingface_hub import snapshot_download

    with hub_errors(key, f"{hub} at {revision}", key):
        commit = readable_revision(Revision("model", hub, revision))
        files = Path(snapshot_download(hub, revision=commit, allow_patterns=HUB_FILES, ignore_patterns=OTHER_RUNTIMES))
        has_better = {path.parent.relative_to(files).as_posix() for path in files.rglob("*.safetensors")}
        useless = [TORCH_FILES if place == "." else f"{place}/{TORCH_FILES}" for place in has_better]
        ignored = [*OTHER_RUNTIMES, *useless]
        snapshot_download(hub, revision=commit, allow_patterns=f"*{TORCH_FILES}", ignore_patterns=ignored)
    log.info("%s at commit %s", hub, files.name)
    return files


def transformer_folder(folder: Path) -> Path:
    """Where the encoder's files lie: the model's folder itself, or one inside such as the old `0_Transformer`."""
    modules = folder / "modules.json"
    return folder / json.loads(modules.read_text(encoding="utf-8"))[0]["path"] if modules.is_file() else folder


def most_tokens(model: "SentenceTransformer") -> int | None:
    """Tokens for which the encoder has positions, or None where its family is not known to have a table of them."""
    config = getattr(getattr(model[0], "model", None), "config", None)
    if config is None or config.model_type not in PLAIN_NAMES:
        return None
    return config.max_position_embeddings - (0 if config.model_type == "bert" else 2)


def missing_weights(model: "SentenceTransformer", folder: Path) -> list[str]:
    """Parameters of the encoder that the folder's weight files don't hold, an unused pooler's apart."""
    encoder: Any = getattr(model[0], "model", None)
    stored = stored_names(transformer_folder(folder))
    if encoder is None or not stored or encoder.config.model_type not in PLAIN_NAMES:
        return []
    names = {name.replace("gamma", "weight").replace("beta", "bias") for name in stored}
    names |= {name.partition(".")[2] for name in names}  # with and without the family's prefix
    return [name for name, _ in encoder.named_parameters() if name not in names and not name.startswith("pooler.")]


def stored_names(folder: Path) -> set[str]:
    """Names of the tensors in the weight files of a folder: safetensors, or torch's own where there are none."""
    import torch
    from safetensors import safe_open

    names: set[str] = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            names.update(tensors.keys())
    for file in () if names else folder.glob(TORCH_FILES):
        names.update(torch.load(file, map_location="meta", weights_only=True, mmap=is_zipfile(file)))
    return names


def _unloadable(error: Exception, folder: Path, remedy: str) -> UserError:
    damaged = "a weight file is damaged, or holds more than tensors"  # torch says in five lines how to run its code
    reason = damaged if isinstance(error, UnpicklingError | EOFError) else first_line(error)
    return UserError(f"the model can't be loaded: {reason}", where=str(folder), remedy=remedy)
