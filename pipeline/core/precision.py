"""What suits the device: the floating-point format, the attention implementation, and how a CPU's memory is kept."""

import contextlib
import ctypes
from typing import ClassVar

import psutil
import torch

from pipeline.core.errors import UserError

MOST_EAGER_TOKENS = 256
# Tokens from which eager attention's scores are softmaxed in 16 bit on a CPU. Shorter rows take up to five times as
# long as in 32 bit with torch 2.13 (31 tokens: 3.7 and 0.7 ms), longer ones about half.
NARROW_FROM = 96
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
PACKED = "torch_varlen"  # attention inside packed texts; the libraries would fetch a kernel for a name with "flash"


def native_bfloat16() -> bool:
    """Whether the device multiplies bfloat16 matrices in hardware rather than by emulation."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


def training_precision(precision: str) -> str:
    """What `precision` stands for here, fp32, bf16 or fp16: auto is bf16, on a GPU without it fp16, else fp32.

    Weights and losses are float32 with each of them. Raises UserError for what the device doesn't have.
    """
    if precision == "bf16" and not native_bfloat16():
        raise UserError(
            "this device has no native bfloat16", where="config key precision", remedy="use precision=auto or fp32"
        )
    if precision == "fp16" and not torch.cuda.is_available():
        raise UserError("fp16 needs a GPU", where="config key precision", remedy="use precision=auto or fp32")
    if precision != "auto":
        return precision
    return "bf16" if native_bfloat16() else "fp16" if torch.cuda.is_available() else "fp32"


def autocast_dtype(precision: str) -> torch.dtype | None:
    """The type in which the encoder multiplies while it trains; None for float32."""
    return AUTOCAST.get(training_precision(precision))


def attention_implementation(attention: str, longest: int) -> str:
    """The name that transformers knows: `attention` itself, or what `auto` stands for.

    On a CPU that is eager where no text has more than 256 tokens: the backward pass of torch's fused attention takes
    half of a step there, on texts of a headline's length. With longer texts, the scores that eager attention keeps
    would take more memory than everything else.
    """
    if attention == PACKED:
        return "sdpa"  # until the texts are packed
    if attention != "auto":
        return attention
    return "eager" if longest <= MOST_EAGER_TOKENS and not torch.cuda.is_available() else "sdpa"


def keep_freed_memory() -> None:
    """Tell glibc to keep what training frees from step to step instead of returning it to the system.

    Otherwise every activation above 32 MiB is mapped, zeroed and unmapped anew at each step. Does nothing elsewhere.
    """
    m_trim_threshold, m_mmap_threshold = -1, -3  # <malloc.h>
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return
    libc.mallopt(m_mmap_threshold, 1 << 30)
    libc.mallopt(m_trim_threshold, 2**31 - 1)


class _Heap(ctypes.Structure):
    """glibc's struct mallinfo2."""

    _names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_: ClassVar = [(name, ctypes.c_size_t) for name in _names.split()]


def resident_memory() -> int:
    """Bytes of this process in memory."""
    return psutil.Process().memory_info().rss


def kept_memory() -> int:
    """Resident bytes that are not allocated: what is kept of freed memory, and code and the like; 0 without glibc.

    glibc goes through all that it keeps to count it, which takes milliseconds.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallinfo2.restype = _Heap
        heap = libc.mallinfo2()
    except (OSError, AttributeError):  # another system, or a glibc before 2.33
        return 0
    return max(0, resident_memory() - heap.uordblks - heap.hblkhd)


def return_kept_memory() -> None:
    """Give the system what is kept of freed memory."""
    with contextlib.suppress(OSError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
