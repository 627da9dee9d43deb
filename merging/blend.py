"""A model in memory whose weights can be set to any blend of the merged models, without writing a file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from merging.interpolation import require_weights
from pipeline.core.models import load_folder

State = dict[str, torch.Tensor]


class Blend:
    """A sentence-transformers model whose weights are set to Σ wᵢ θᵢ in place, in float32; one weight of 1 is exact.

    Memory: the working copy and every model's weights; tensors that training left unchanged take none.

    Args:
        models: compatible model folders by name (`require_compatible`), the base θ₀ first.
        precision: for embedding texts, by autocast; weights and vectors stay float32.
        attention: transformers' name for the attention implementation.
        token_budget: padded tokens per pass; None: by the device.

    Raises UserError: a tensor that holds NaN or infinity.
    """

    def __init__(
        self,
        models: Mapping[str, Path],
        precision: str = "fp32",
        attention: str = "sdpa",
        token_budget: int | None = None,
    ) -> None:
        (base_name, base), *others = models.items()
        self.names, self.precision, self.token_budget = list(models), precision, token_budget
        self.model = load_folder(base, attn_implementation=attention, remedy=f"make {base_name} again").eval()
        self.start = floating(self.model)
        for tensor in (*self.model.parameters(), *self.model.buffers()):
            tensor.data = tensor.data.clone()  # not memory-mapped: the first write to each page would fault
        self.working = floating(self.model)
        self.changed = {name: self._changed(name, folder) for name, folder in others}

    def _changed(self, name: str, folder: Path) -> State:
        """The model's tensors that differ from the base's."""
        theirs = floating(load_folder(folder, remedy=f"make {name} again"))
        return {key: tensor for key, tensor in theirs.items() if not tensor.equal(self.start[key])}

    @torch.no_grad()
    def set(self, weights: Mapping[str, float]) -> None:
        """Set the blend's weights, one per model, with sum 1."""
        require_weights(weights, self.names)
        for key, tensor in self.working.items():
            others = {name: state[key] for name, state in self.changed.items() if weights[name] and key in state}
            torch.mul(self.start[key], 1 - sum(weights[name] for name in others), out=tensor)
            for name, theirs in others.items():
                tensor.add_(theirs, alpha=weights[name])

    @torch.no_grad()
    def set_state(self, state: State) -> None:
        """Set the floating tensors to those of `state`, which need not be a blend."""
        for key, tensor in self.working.items():
            tensor.copy_(state[key])


def floating(model: Any) -> State:
    """The model's floating tensors by name, sharing its memory; those that share memory appear once."""
    seen: set[int] = set()
    tensors = {}
    for key, tensor in model.state_dict().items():
        if tensor.is_floating_point() and tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            tensors[key] = tensor
    return tensors
