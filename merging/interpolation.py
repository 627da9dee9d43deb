"""θ = Σ wᵢ θᵢ over models of one architecture and one vocabulary, streamed from safetensors to safetensors.

The sum is computed as θ_r + Σ wᵢ (θᵢ − θ_r) in float32, where θ_r is the first model with a weight. For weights that
sum to 1 both forms are equal, but this one reproduces a single model with weight 1, and any mixture of equal models,
bit by bit; its rounding errors are those of the small differences instead of those of the weights.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import cycle
from pathlib import Path

import torch

from data.pairs.streams import ordered_map
from pipeline.core.errors import UserError
from pipeline.core.safetensors_io import (
    CODES,
    FLOATING,
    WEIGHTS_FILE,
    WHOLE,
    EagerFile,
    SafetensorsReader,
    write_header,
)

SLICE_ITEMS = 1 << 21  # read at once from each model: 8 MB in float32, which keeps memory small and fits the caches
WIDEST = 8  # bytes of the widest dtype
SUM_TOLERANCE = 1e-6


def interpolate(models: Mapping[str, Path], weights: Mapping[str, float], target: Path, dtype: str = "float32") -> None:
    """Write `target/model.safetensors`: Σ weights[name] · models[name], in `dtype` (whole numbers as they are).

    Args:
        models: folders with safetensors weights, by name, all with the same tensors.
        weights: one finite weight per model; they sum to 1 (a negative one extrapolates).
        target: an existing folder.
        dtype: float32, bfloat16 or float16.

    Raises UserError: invalid weights; tensors that differ in name, shape or kind; integer tensors that differ; a
    value that is not finite (with model and tensor), or exceeds the range of `dtype`.
    """
    require_weights(weights, list(models))
    with ExitStack() as stack:
        opened = {name: stack.enter_context(SafetensorsReader(folder)) for name, folder in models.items()}
        require_same_tensors(opened)
        base = next(iter(opened.values()))
        codes = {name: CODES[dtype] if stored.is_floating else stored.code for name, stored in base.tensors.items()}
        file = stack.enter_context(EagerFile(target / WEIGHTS_FILE))
        write_header(file.file, {name: stored.shape for name, stored in base.tensors.items()}, codes, base.metadata)
        for tensor, is_floating, parts in _read_ahead(opened, weights):
            if is_floating:
                mixed = weighted_sum(parts, weights).to(getattr(torch, dtype))
                _require_finite(tensor, mixed, parts)
            else:
                mixed = _identical(tensor, parts)
            file.write(mixed.view(torch.uint8).numpy().data)


def require_weights(weights: Mapping[str, float], names: Sequence[str]) -> None:
    """Raise UserError unless there is a finite weight for every model and they sum to 1 within 1e-6."""
    if set(weights) != set(names):
        what = f"weights for {', '.join(weights)} but models {', '.join(names)}"
        raise UserError(what, where="merging.weights", remedy="give every model one weight")
    total = sum(weights.values())
    if not abs(total - 1) <= SUM_TOLERANCE:  # true for NaN as well
        what = f"weights sum to {total:g} instead of 1"
        raise UserError(what, where="merging.weights", remedy="scale them to a sum of 1")


def require_same_tensors(models: Mapping[str, SafetensorsReader]) -> None:
    """Raise UserError unless all checkpoints have tensors of the same names, shapes and kinds of dtype."""
    (base_name, base), *others = models.items()
    for name, other in others:
        missing = [tensor for tensor in base.tensors if other.find(tensor) is None]
        extra = [tensor for tensor in other.tensors if base.find(tensor) is None]
        if missing:
            raise _unlike(f"{name} lacks {_listed(missing)}, which {base_name} has", other)
        if extra:
            raise _unlike(f"{name} has {_listed(extra)}, which {base_name} lacks", other)
        for tensor, stored in base.tensors.items():
            theirs = other.find(tensor)
            assert theirs is not None
            if theirs.shape != stored.shape:
                shapes = f"{list(stored.shape)} in {base_name} but {list(theirs.shape)} in {name}"
                raise _unlike(f"tensor {tensor} has shape {shapes}", other)
            if theirs.is_floating != stored.is_floating:
                raise _unlike(f"tensor {tensor} is {stored.code} in {base_name} but {theirs.code} in {name}", other)


def _listed(tensors: list[str]) -> str:
    rest = f" and {len(tensors) - 3} more" if len(tensors) > 3 else ""
    return f"tensor {', '.join(tensors[:3])}{rest}"


def _unlike(what: str, other: SafetensorsReader) -> UserError:
    return UserError(what, where=str(other.folder), remedy="merge only models trained from the same init model")


def _read_ahead(
    models: Mapping[str, SafetensorsReader], weights: Mapping[str, float]
) -> Iterator[tuple[str, bool, dict[str, torch.Tensor]]]:
    """Every slice of every tensor: its name, whether it is floating, and its values in the models with a weight.

    Values are valid until the next slice is requested, which a thread already reads: two sets of buffers serve the
    whole file.
    """
    base = next(iter(models.values()))
    starts = ((name, first) for name, stored in base.tensors.items() for first in range(0, stored.items, SLICE_ITEMS))
    counting = {name: model for name, model in models.items() if weights[name]}
    buffers = cycle([{name: bytearray(SLICE_ITEMS * WIDEST) for name in models} for _ in range(2)])

    def read(start: tuple[str, int]) -> tuple[str, bool, dict[str, torch.Tensor]]:
        tensor, first = start
        stored, own, parts = base.tensors[tensor], next(buffers), {}
        for name, model in (counting if stored.is_floating else models).items():
            theirs = model.find(tensor)
            assert theirs is not None
            numbers = model.read(theirs, first, min(SLICE_ITEMS, stored.items - first), own[name])
            parts[name] = torch.frombuffer(numbers, dtype=getattr(torch, (FLOATING | WHOLE)[theirs.code]))
        return tensor, stored.is_floating, parts

    return ordered_map(read, starts, workers=1)


def weighted_sum(parts: Mapping[str, torch.Tensor], weights: Mapping[str, float]) -> torch.Tensor:
    """The weighted sum of one tensor over the models in `parts`, in float32."""
    reference, *others = parts
    start = parts[reference].float()
    mixed = start.clone() if others else start
    for name in others:
        mixed.add_(parts[name].float() - start, alpha=weights[name])
    return mixed


def _identical(tensor: str, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """An integer tensor, which can't be averaged: it must be the same in all models."""
    (base_name, base), *others = parts.items()
    for name, part in others:
        if not part.equal(base.to(part.dtype)):
            what = f"whole-number tensor {tensor} differs between {base_name} and {name}"
            raise UserError(what, where="merging.models", remedy="merge only models trained from the same init model")
    return base


def _require_finite(tensor: str, mixed: torch.Tensor, parts: Mapping[str, torch.Tensor]) -> None:
    if math.isfinite(mixed.sum(dtype=torch.float32).item()) or mixed.isfinite().all():
        return  # the sum is one cheap pass; it may overflow where every value is finite
    culprit = next((name for name, part in parts.items() if not part.isfinite().all()), None)
    if culprit is not None:
        what = f"tensor {tensor} of model {culprit} holds NaN or infinity"
        raise UserError(what, where="merging.models", remedy=f"make {culprit} again: its training has diverged")
    what = f"merged tensor {tensor} exceeds the range of {mixed.dtype}"
    raise UserError(what, where="merging.dtype", remedy="use float32 or bfloat16")
