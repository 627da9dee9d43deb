"""How many tokens' activations fit a device at once: those are embedded with a graph, the rest twice."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from accelerate.utils import send_to_device
from sentence_transformers import SentenceTransformer
from sentence_transformers.util.distributed import get_world_size
from torch import nn

from configs.schema.training import PlannedConfig
from pipeline.core.console import log
from pipeline.core.embedding import CPU_TOKENS, GPU_TOKENS
from pipeline.core.errors import UserError
from training.model_files import encoder_of

# On a CPU: the tokens of bge-m3's longest text. Training 28 million parameters on texts of 96 tokens peaks at 4.8 GB
# with it, at 6.5 GB with twice as many (questions on documentation, two cores).
AT_ONCE_ON_CPU = 8192
# What one more mini-batch costs, in tokens: measured with the demo's base on two cores; on a GPU estimated from the
# kernel launches of 24 layers, forward and backward, at 5 microseconds each, against 100,000 tokens a second.
CPU_OVERHEAD, GPU_OVERHEAD = 96, 512
PROBED = 4096  # tokens of the first probe; the second has twice as many
STATE_BYTES = 12  # per trained parameter: gradient and AdamW's two moments; the weights are on the device already
DDP_BUCKET_BYTES = 4  # per trained parameter: DistributedDataParallel's copy of the gradient
DDP_BUCKET = 25 * 2**18  # its copies are reduced in buckets of this many gradients
RESERVED_SHARE = 0.05  # share of the device's memory that is left free: fragments, the loss, dev scores
BUDGET_MULTIPLE = 256  # budgets are multiples of it
MINI_BATCHES_PER_BUDGET = 4  # for a batch that needs more than one: smaller ones fill more of the budget


@dataclasses.dataclass(frozen=True)
class Budget:
    """How a batch is cut into mini-batches."""

    tokens: int  # with padding, whose activations are in memory at once
    overhead: int  # what a further mini-batch costs, in tokens
    whole: bool = True  # whether a batch that fits is cut only to save padding


def planned_budget(side: PlannedConfig, fitting: int = AT_ONCE_ON_CPU, overhead: int = CPU_OVERHEAD) -> Budget:
    """The side's mini_batch_tokens, or `fitting` where that is auto; by default a CPU's, the same on every machine."""
    return Budget(side.mini_batch_tokens if isinstance(side.mini_batch_tokens, int) else fitting, overhead)


def encoding_budget(settings: PlannedConfig, token_budget: int | None, on_gpu: bool) -> Budget:
    """The mini-batch budget of a frozen encoder, which keeps no activations: passes are as large as for embedding."""
    tokens = MINI_BATCHES_PER_BUDGET * (token_budget or (GPU_TOKENS if on_gpu else CPU_TOKENS))
    budget = planned_budget(settings, tokens, GPU_OVERHEAD if on_gpu else CPU_OVERHEAD)
    return dataclasses.replace(budget, whole=settings.mini_batch_tokens != "auto" or not on_gpu)


def measured_tokens(
    model: SentenceTransformer,
    features: Callable[[Sequence[Sequence[int]]], dict[str, Any]],
    side: PlannedConfig,
    dtype: torch.dtype | None,
    key: str,
    held: int = 0,
) -> int:
    """Tokens whose activations fit the GPU of `model` alongside the training state, on the fullest rank.

    Two probing steps on the side's longest texts, one with twice as many texts, give the bytes per token and those that
    every step takes. `features` makes a mini-batch, `dtype` None means float32, `key` is the side's, for errors, and
    `held` are the bytes that jointly trained heads hold of a whole batch.
    """
    device, peaks, sizes, longest = model.device, [], [], side.longest
    text = [int(model.tokenizer.sep_token_id or 0)] * longest
    with memory_explained(key):
        probe(model, features([text]), dtype)  # allocates what stays after the first pass, such as workspaces
        for number in (max(1, PROBED // longest), 2 * max(1, PROBED // longest)):
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            # One is shorter: otherwise padded texts have no mask, of which each layer keeps a copy.
            probe(model, features([*[text] * (number - 1), text[1:]]), dtype)
            peaks.append(torch.cuda.max_memory_allocated(device) - before)
            sizes.append(number * longest)
    if get_world_size() > 1:  # the first all-reduce of a gradient bucket's size makes NCCL allocate its buffers for it
        torch.distributed.all_reduce(torch.zeros(DDP_BUCKET, device=device))
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    state = trained * (STATE_BYTES + DDP_BUCKET_BYTES * torch.distributed.is_initialized())  # of a single rank too
    state += copied_bytes(model, autocast=dtype is not None) * (MINI_BATCHES_PER_BUDGET - 1)  # the probe had one
    a_token, fits = tokens_that_fit(sizes, peaks, int(free - state - RESERVED_SHARE * total) - held, trained)
    if get_world_size() > 1:
        least = torch.tensor(fits, device=device)
        torch.distributed.all_reduce(least, op=torch.distributed.ReduceOp.MIN)
        fits = int(least.item())
    if fits < longest:
        heads = f", {held / 1e9:.1f} GB that the heads hold of a batch" if held else ""
        what = f"a text of {longest} tokens{heads} and the training state don't fit the GPU's memory"
        remedy = f"{'lower batch_tokens or batch_size, or ' if held else ''}shorten anchor_length and positive_length"
        raise UserError(what, where=f"config key {key}", remedy=remedy)
    log.info("%.2f MB of activations per token: %d tokens at once", a_token / 1e6, fits)
    return fits


def copied_bytes(model: nn.Module, autocast: bool) -> int:
    """Bytes of the 16-bit weights that each mini-batch's graph keeps for itself: of compiled layers, and of frozen ones
    under autocast, which shares the others' among mini-batches."""
    compiled = [module for module in model.modules() if module._compiled_call_impl is not None]
    own: set[torch.Tensor] = {weight for module in compiled for weight in module.parameters()}
    if autocast:  # frozen under an adapter
        linear = (module for module in model.modules() if isinstance(module, nn.Linear))
        own |= {module.weight for module in linear if not module.weight.requires_grad}
    return 2 * sum(weight.numel() for weight in own)


def tokens_that_fit(sizes: Sequence[int], peaks: Sequence[int], room: int, trained: int) -> tuple[float, int]:
    """Bytes per token, and how many tokens' activations `room` bytes hold.

    `peaks` are the bytes that probing steps of `sizes` tokens took. Their constant part contains the gradients of the
    `trained` parameters, which `room` already excludes.
    """
    a_token = max((peaks[1] - peaks[0]) / (sizes[1] - sizes[0]), 1.0)
    constant = max(peaks[0] - a_token * sizes[0] - 4 * trained, 0.0)
    return a_token, max(int((room - constant) / a_token), 0) // BUDGET_MULTIPLE * BUDGET_MULTIPLE


def probe(model: SentenceTransformer, features: dict[str, Any], dtype: torch.dtype | None) -> None:
    """A forward and a backward pass that leave no gradient and don't change the random state.

    The embedding table gets none: with a large vocabulary it would exceed the activations, which are to be measured.
    """
    device, table = model.device, encoder_of(model).get_input_embeddings().weight
    model.train()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            embeddings = model(send_to_device(features, device))["sentence_embedding"].float()
        inputs = [weight for weight in model.parameters() if weight.requires_grad and weight is not table]
        embeddings.square().sum().backward(inputs=inputs)
    model.zero_grad(set_to_none=True)


@contextlib.contextmanager
def memory_explained(key: str, tokens: int | None = None, heads: bool = False) -> Iterator[None]:
    """Raise UserError where the device runs out of memory, with half of `tokens` as the remedy.

    `tokens` are those that were to be in memory at once, `key` is the side's config key, and `heads` says whether heads
    train too, whose memory grows with the whole batch.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        half = max(tokens // 2 // BUDGET_MULTIPLE * BUDGET_MULTIPLE, BUDGET_MULTIPLE) if tokens else PROBED // 2
        what = "the device's memory is full" + (f" with {tokens} tokens at once" if tokens else "")
        smaller = "lower batch_tokens or batch_size, " if heads else ""
        remedy = f"{smaller}set mini_batch_tokens={half}, or stop other programs on the device"
        raise UserError(what, where=f"config key {key}.mini_batch_tokens", remedy=remedy) from error
