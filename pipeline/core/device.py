"""What training's devices allow: their number, precision, attention, and how a CPU's freed memory is kept."""

import ctypes
import sys

import psutil
import torch

from configs.schema.config import Config, LaunchConfig
from pipeline.core.errors import UserError
from pipeline.core.machine import require_kernels, usable_gpus

MOST_EAGER_TOKENS = 256
# Tokens from which eager attention computes its softmax in 16 bit on a CPU. With torch 2.13, shorter rows take up to
# five times as long as in 32 bit (31 tokens: 3.7 and 0.7 ms), longer ones about half.
NARROW_FROM = 96
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
PACKED = "torch_varlen"  # attention for packed texts; with "flash" in the name the libraries would fetch a kernel


def native_bfloat16() -> bool:
    """Whether the device multiplies bfloat16 matrices in hardware rather than by emulation."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


def training_gpus(config: Config) -> int:
    """The number of this machine's GPUs; raises UserError where torch can't use those that training's ranks take."""
    count = usable_gpus()
    require_kernels(*range(min(count, config.ranks(count))))
    return count


def require_devices(devices: int, launch: LaunchConfig) -> None:
    """Raise UserError where some GPU would get two ranks, which NCCL refuses in many lines."""
    most = devices * launch.nodes
    if devices and launch.config != "cpu" and (launch.processes or 1) > most:
        what, remedy = f"{launch.processes} processes, but {most} GPUs", f"use at most {most}, or leave it out"
        raise UserError(what, where="config key launch.processes", remedy=remedy)


def training_precision(precision: str) -> str:
    """Resolve `precision` to fp32, bf16 or fp16: auto is bf16, on a GPU without it fp16, else fp32.

    Weights and losses are float32 in all cases. Raises UserError for a precision that the device doesn't support.
    """
    where, remedy = "config key precision", "use precision=auto or fp32"
    if precision == "bf16" and not native_bfloat16():
        raise UserError("this device has no native bfloat16", where=where, remedy=remedy)
    if precision == "fp16" and not torch.cuda.is_available():
        raise UserError("fp16 needs a GPU", where=where, remedy=remedy)
    if precision != "auto":
        return precision
    return "bf16" if native_bfloat16() else "fp16" if torch.cuda.is_available() else "fp32"


def autocast_dtype(precision: str) -> torch.dtype | None:
    """The autocast dtype of the encoder in training; None for float32."""
    return AUTOCAST.get(training_precision(precision))


def attention_implementation(attention: str, longest: int) -> str:
    """transformers' name of the implementation: `attention` itself, or what `auto` resolves to.

    On a CPU `auto` is eager if no text has more than 256 tokens: the backward pass of torch's fused attention takes
    half of a step there, on texts as short as headlines. With longer texts, the scores kept by eager attention would
    take more memory than everything else.
    """
    if attention == PACKED:
        return "sdpa"  # until the texts are packed
    if attention != "auto":
        return attention
    return "eager" if longest <= MOST_EAGER_TOKENS and not torch.cuda.is_available() else "sdpa"


def keep_freed_memory() -> None:
    """Have glibc keep memory that training frees at each step instead of returning it to the system.

    Otherwise every activation above 32 MiB is mapped, zeroed and unmapped at each step. Without glibc, does nothing.
    """
    m_trim_threshold, m_mmap_threshold = -1, -3  # <malloc.h>
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return
    libc.mallopt(m_mmap_threshold, 1 << 30)
    libc.mallopt(m_trim_threshold, 2**31 - 1)


def kept_memory() -> int:
    """Resident bytes that are not allocated: freed memory that is kept, and code and the like; 0 without glibc.

    glibc traverses its free lists to count them, which takes milliseconds.
    """
    if sys.platform != "linux" or not hasattr(psutil, "heap_info"):  # psutil has it on Linux where libc is glibc
        return 0
    heap = psutil.heap_info()
    return max(0, psutil.Process().memory_info().rss - heap.heap_used - heap.mmap_used)
