"""A model in memory whose weights can be set to any blend of the merged models, without a file being written."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from merging.interpolation import not_finite, require_weights
from pipeline.core.models import load_folder

State = dict[str, torch.Tensor]


class Blend:
    """A sentence-transformers model that takes on θ₀ + Σ wᵢ (θᵢ − θ₀) in place, in float32.

    Memory: the working copy, θ₀, and one task vector θᵢ − θ₀ for every other model; tensors that training left as
    they were take no room.

    Args:
        models: compatible model folders by name (`require_compatible`), the base θ₀ first.
        max_length: tokens at which texts are cut (or at the model's own limit, if that is smaller).
        bfloat16: whether texts are embedded under bfloat16 autocast; weights and vectors are float32 all the same.

    Raises:
        UserError: a tensor that holds NaN or infinity.
    """

    def __init__(self, models: Mapping[str, Path], max_length: int, bfloat16: bool = False) -> None:
        (base_name, base), *others = models.items()
        self.names, self.bfloat16 = list(models), bfloat16
        self.model = load(base)
        self.model.max_seq_length = min(max_length, self.model.max_seq_length or max_length)
        self.start = floating(self.model)
        _require_finite(base_name, self.start)
        _give_own_memory(self.model)
        self.working = floating(self.model)
        self.task_vectors = {name: self._task_vector(name, folder) for name, folder in others}

    def _task_vector(self, name: str, folder: Path) -> State:
        theirs = floating(load(folder))
        _require_finite(name, theirs)
        differences = {key: theirs.pop(key) - self.start[key] for key in list(theirs)}
        return {key: difference for key, difference in differences.items() if difference.any()}

    def embed(self, features: dict[str, Any]) -> torch.Tensor:
        """Pooled vectors of tokenised texts under the present weights, float32, shape (texts, dimension)."""
        inputs = {key: _to(value, self.model.device) for key, value in features.items()}
        with torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.bfloat16):
            return self.model(inputs)["sentence_embedding"].float()

    @torch.no_grad()
    def set(self, weights: Mapping[str, float]) -> None:
        """Take on these weights, one a model, with sum 1."""
        require_weights(weights, self.names)
        for key, tensor in self.working.items():
            tensor.copy_(self.start[key])
            for name, vector in self.task_vectors.items():
                if weights[name] and key in vector:
                    tensor.add_(vector[key], alpha=weights[name])

    @torch.no_grad()
    def set_state(self, state: State) -> None:
        """Take on the floating tensors of `state`, which may be no blend at all."""
        for key, tensor in self.working.items():
            tensor.copy_(state[key])


def load(folder: Path) -> Any:
    """The sentence-transformers model of a folder, in float32, in evaluation mode, on the fastest device."""
    return load_folder(folder, finite=False).eval()


def floating(model: Any) -> State:
    """The model's floating tensors by name, sharing its memory; those that share memory appear once."""
    seen: set[int] = set()
    tensors = {}
    for key, tensor in model.state_dict().items():
        if tensor.is_floating_point() and tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            tensors[key] = tensor
    return tensors


def _give_own_memory(model: Any) -> None:
    """Tensors are loaded as maps of the file: the first write to each of their pages would cost a page fault."""
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()


def _to(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, torch.Tensor) else value


def _require_finite(name: str, state: State) -> None:
    for key, tensor in state.items():
        if not tensor.isfinite().all():
            raise not_finite(name, key)
