"""`pytorch_model.bin` read like safetensors: torch's file is an uncompressed archive, so tensors have places in it."""

from pathlib import Path

from pipeline.core.checkpoint import Checkpoint, StoredTensor
from pipeline.core.errors import UserError, first_line

TORCH_WEIGHTS = "pytorch_model.bin"


class TorchCheckpoint(Checkpoint):
    """The tensors of a folder with `pytorch_model.bin`, found without reading them.

    The file is unpickled with `weights_only=True` and with tensors that hold no data; each then knows where its
    data starts.

    Raises:
        UserError: the file is not a dictionary of contiguous tensors in torch's zip format.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tensors = {}
        self.metadata = {}
        self._files = {}
        path = folder / TORCH_WEIGHTS
        for name, tensor in _described(path).items():
            self.tensors[name] = tensor
        self.tensors = dict(sorted(self.tensors.items(), key=lambda item: item[1].start))


def _described(path: Path) -> dict[str, StoredTensor]:
    import zipfile
    from pickle import UnpicklingError

    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    codes = {
        torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
        torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
        torch.bool: "BOOL",
    }  # fmt: skip
    remedy = "save the model as safetensors"
    if not zipfile.is_zipfile(path):
        raise UserError("not a torch file in zip format", where=str(path), remedy=remedy)
    try:
        with FakeTensorMode():
            content = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise UserError(
            "can't read torch's file: it holds more than tensors", where=str(path), remedy=remedy
        ) from error
    except (RuntimeError, OSError, ValueError, LookupError, TypeError, AttributeError, EOFError) as error:
        what = f"can't read torch's file: {first_line(error)}"
        raise UserError(what, where=str(path), remedy=remedy) from error
    described = {}
    for name, tensor in content.items() if isinstance(content, dict) else ():
        if not isinstance(tensor, torch.Tensor) or not tensor.is_contiguous() or tensor.dtype not in codes:
            raise UserError(f"{name} is not a plain tensor", where=str(path), remedy=remedy)
        storage_start = tensor.untyped_storage()._checkpoint_offset
        assert storage_start is not None
        start = storage_start + int(tensor.storage_offset()) * tensor.itemsize
        described[name] = StoredTensor(path, codes[tensor.dtype], tuple(tensor.shape), start)
    if not described:
        raise UserError("no tensors in torch's file", where=str(path), remedy=remedy)
    return described
