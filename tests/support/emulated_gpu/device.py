"""The emulated GPU itself, for a process that has not imported torch yet."""

import ctypes
import itertools
import json
import os
import sys
import traceback
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from tests.support.emulated_gpu import LIBRARY
from tests.support.runs import REPOSITORY

ctypes.CDLL(os.environ[LIBRARY], ctypes.RTLD_GLOBAL)  # torch looks for it once, when it is imported

import torch  # noqa: E402
import torch.nn.attention.varlen  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing  # noqa: E402
from torch.utils._pytree import tree_leaves, tree_map  # noqa: E402

HERE = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))

ANSWERS: dict[str, Any] = {  # results of functions of torch.cuda
    "is_available": True,
    "is_initialized": True,
    "is_bf16_supported": True,
    "device_count": int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
    "current_device": HERE.index,
    "get_device_capability": (9, 0),
    "get_device_name": "emulated",
    "mem_get_info": (70 * 10**9, 80 * 10**9),
    "memory_allocated": 0,
    "get_rng_state_all": [],
    "_exchange_device": HERE.index,
    "_maybe_exchange_device": HERE.index,
    **dict.fromkeys(("_lazy_init", "set_device", "empty_cache", "reset_peak_memory_stats", "synchronize")),
    **dict.fromkeys(("manual_seed", "manual_seed_all", "set_rng_state", "set_rng_state_all")),
}

aten, packed, c10d = torch.ops.aten, torch.ops.torch_attn, torch.ops.c10d
COPIES = (aten.copy_.default, aten._to_copy.default)
INDEXING = (aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default)
WAITING = (  # for numbers, or for the size of the result
    *(aten._local_scalar_dense.default, aten.equal.default, aten.nonzero.default, aten.masked_select.default),
    *(aten._unique2.default, aten.unique_consecutive.default, aten.bincount.default),
)
waits = Counter[str]()


def wait() -> None:
    """Count a wait in a training step, for our innermost function."""
    stack = traceback.extract_stack()
    called = {frame.name for frame in stack}
    if "_run_epoch" in called and "_maybe_log_save_evaluate" not in called:  # the library's
        ours = [frame for frame in stack if _is_product(frame.filename)]
        waits[f"{Path(ours[-1].filename).relative_to(REPOSITORY)} {ours[-1].name}"] += 1


def _is_product(file: str) -> bool:
    inside = Path(file).is_relative_to(REPOSITORY)
    return inside and Path(file).relative_to(REPOSITORY).parts[0] not in (".venv", "tests")


class Cuda(Tensor):
    """A tensor on the device; `held` has its numbers."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, held: Tensor) -> "Cuda":
        options = {"dtype": held.dtype, "device": HERE}
        made = Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), **options
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatched(function, args, kwargs or {})

    def tolist(self) -> Any:
        wait()
        return self.held.tolist()

    def storage(self) -> Any:  # safetensors asks whether two share it
        return self.held.storage()

    def untyped_storage(self) -> Any:
        return self.held.untyped_storage()

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(f"can't convert {HERE} device type tensor to numpy")


class Device(TorchDispatchMode):
    """Sees operations without a device tensor among their arguments, which may create one."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatched(function, args, kwargs or {})


def dispatched(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The operation, run by the CPU."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    ours = [tensor for tensor in tensors if isinstance(tensor, Cuda)]
    device = torch.device(kwargs["device"]) if kwargs.get("device") is not None else None
    to_gpu = device is not None and device.type == "cuda"
    if to_gpu and device.index not in (None, HERE.index):
        raise RuntimeError(f"{function}: {device} is another rank's")
    if function.namespace == "c10d":
        return collective(function, args, kwargs)
    if not ours and not to_gpu:
        return function(*args, **kwargs)
    if "_has_compatible_shallow_copy_type" in str(function):
        return False
    if function is packed._varlen_attn.default:
        return tuple(map(Cuda, attention(*args)))
    if function is packed._varlen_attn_backward.default:
        return tuple(map(Cuda, attention_backward(*args)))
    _look(function, args, kwargs, to_gpu if device else None)
    inner = {name: value for name, value in kwargs.items() if name != "pin_memory"}
    if to_gpu:
        inner["device"] = torch.device("cpu")
    args_held, inner = tree_map(_held, (args, inner))
    made = function(*args_held, **inner)
    if device is not None and not to_gpu:  # to the CPU
        return made.clone() if made is args_held[0] else made
    if function is aten.copy_.default and not isinstance(args[0], Cuda):
        return made
    made = tree_map(lambda one: Cuda(one) if isinstance(one, Tensor) else one, made)
    return return_and_correct_aliasing(function, args, kwargs, made) if ours else made


def collective(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The collective, run by gloo under NCCL's conditions; raises RuntimeError where a tensor doesn't meet them."""
    tensors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
    is_barrier = function is c10d.barrier.default  # has a tensor of its own
    if not is_barrier and not all(isinstance(one, Cuda) and one.is_contiguous() for one in tensors):
        raise RuntimeError(f"{function}: NCCL takes contiguous tensors on a GPU only")
    held = tree_map(_held, args)
    if function is c10d.reduce_scatter_.default:  # which gloo lacks
        (into,), (parts,), group, operation, *_ = held
        summed = torch.stack(parts)
        work = c10d.allreduce_([summed], group, operation, None)[1]
        work.wait()
        into.copy_(summed[torch.distributed.get_rank()])
        return args[0], work
    made = function(*held, **kwargs)
    return (args[0], made[1]) if isinstance(made, tuple) else made


def _held(one: Any) -> Any:
    return one.held if isinstance(one, Cuda) else one


def _look(function: Any, args: Any, kwargs: dict[str, Any], to_gpu: bool | None) -> None:
    """Count the operation if it waits for the device; raise RuntimeError where it mixes devices."""
    indices = [leaf for leaf in tree_leaves(args[1:2]) if isinstance(leaf, Tensor)] if function in INDEXING else []
    crosses = function is aten.copy_.default and isinstance(args[0], Cuda) != isinstance(args[1], Cuda)
    crosses |= function is aten._to_copy.default and to_gpu is not None and isinstance(args[0], Cuda) != to_gpu
    blocks = not (kwargs.get("non_blocking") or (function is aten.copy_.default and args[2:3] == (True,)))
    selects = any(index.dtype == torch.bool or not isinstance(index, Cuda) for index in indices)
    repeats = function is aten.repeat_interleave.Tensor and kwargs.get("output_size") is None
    if function in WAITING or selects or repeats or (crosses and blocks):
        wait()
    others = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.dim() > 0]
    others = [leaf for leaf in others if not isinstance(leaf, Cuda) and not any(leaf is one for one in indices)]
    if others and function not in COPIES and any(isinstance(leaf, Cuda) for leaf in tree_leaves((args, kwargs))):
        raise RuntimeError(f"{function}: expected all tensors to be on the same device, found {HERE} and cpu")


def attention(
    query: Cuda, key: Cuda, value: Cuda, ends: Cuda, ends_k: Cuda, longest: int, _: int, causal: bool, scale: Any,
    window: list[int], *__: Any,
) -> Any:  # fmt: skip
    """Attention inside each text, (tokens, heads, width), under the conditions of flash attention's kernel."""
    lengths = ends.held.diff().tolist()
    assert query.dtype in (torch.float16, torch.bfloat16) and ends.dtype == torch.int32
    assert query.shape[-1] % 8 == 0 and all(one.stride(-1) == 1 for one in (query, key, value))
    assert max(lengths) <= longest and sum(lengths) == len(query) and ends_k is ends
    made = []
    for q, k, v in zip(*(one.held.float().split(lengths) for one in (query, key, value)), strict=True):
        groups = q.shape[1] // k.shape[1]
        made.append(_weights(q, k, window) @ v.transpose(0, 1).repeat_interleave(groups, 0))
    out = torch.cat([one.transpose(0, 1) for one in made]).to(query.dtype)
    return out, torch.zeros(query.shape[1], len(query)), torch.zeros(2, dtype=torch.uint64)


def _weights(query: Tensor, key: Tensor, window: list[int]) -> Tensor:
    scores = query.transpose(0, 1) @ key.transpose(0, 1).mT.repeat_interleave(query.shape[1] // key.shape[1], 0)
    places = torch.arange(len(query))
    steps = places - places[:, None]  # to the right
    left, right = (reach if reach >= 0 else len(query) for reach in window)
    scores = scores.masked_fill((steps < -left) | (steps > right), -torch.inf)
    return (scores * query.shape[-1] ** -0.5).softmax(-1)


def attention_backward(
    grad: Cuda, query: Cuda, key: Cuda, value: Cuda, out: Cuda, lse: Cuda, ends: Cuda, *others: Any
) -> list[Tensor]:
    """The gradients of query, key and value."""
    lengths, made = ends.held.diff().tolist(), list[list[Tensor]]()
    for parts in zip(*(one.held.float().split(lengths) for one in (query, key, value, grad)), strict=True):
        weights = _weights(*parts[:2], others[-1])
        q, k, v, g = (one.transpose(0, 1) for one in parts)
        heads = k.shape[0]
        k, v = (one.repeat_interleave(len(q) // heads, 0) for one in (k, v))
        by_weights = g @ v.mT
        by_scores = weights * (by_weights - (by_weights * weights).sum(-1, keepdim=True)) * q.shape[-1] ** -0.5
        shared = (one.unflatten(0, (heads, -1)).sum(1) for one in (by_scores.mT @ q, weights.mT @ g))
        made.append([one.transpose(0, 1) for one in (by_scores @ k, *shared)])
    return [torch.cat(list(one)).to(query.dtype) for one in zip(*made, strict=True)]


def switch_on() -> None:
    """Give this process the device for good; raises AssertionError where it would accept a CPU tensor."""
    for name, answer in ANSWERS.items():
        setattr(torch.cuda, name, lambda *_, answer=answer, **__: answer)
    for module in (torch.cuda, torch.cuda.random):
        module.get_rng_state = lambda *_: torch.get_rng_state()
    taken = itertools.count(10**9, 10**7)  # more with each pass, as probing expects
    torch.cuda.max_memory_allocated = lambda *_: next(taken)
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False
    torch.inference_mode = lambda mode=True: torch.no_grad()  # wrapped tensors don't work there
    Tensor.pin_memory = lambda self, *_: self
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device="cuda") goes through `Device`
    torch.__future__.set_swap_module_params_on_conversion(True)
    torch.distributed.init_process_group = partial(_gloo_for_nccl, torch.distributed.init_process_group)
    torch.distributed.get_backend = lambda *_, **__: "nccl"
    torch.cuda.nccl.version = lambda: (2,)  # for reports of errors
    torch.distributed.distributed_c10d._get_object_coll_device = lambda *_: "cuda"
    Device().__enter__()
    try:
        torch.ones(2, device="cuda") + torch.ones(2)
    except RuntimeError as error:
        assert "expected all tensors to be on the same device" in str(error)
    else:
        raise AssertionError("the emulated GPU takes a tensor of the CPU")


def _gloo_for_nccl(start: Any, backend: str, **options: Any) -> None:
    assert backend == "nccl"
    start("cpu:gloo,cuda:gloo", **options)


def run_pipeline(waits_file: str = os.devnull) -> None:
    """Run the pipeline's command on the device."""
    switch_on()
    from pipeline.run import main

    sys.argv[0] = "pipeline.run"
    try:
        main()
    finally:
        Path(waits_file).write_text(json.dumps(waits))


if __name__ == "__main__":
    run_pipeline()
