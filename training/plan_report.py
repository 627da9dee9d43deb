"""plan.json: what a run will do, in numbers that don't depend on the machine."""

from typing import Any

import numpy as np

from configs.schema.training import SideConfig
from training.batch_plan import BatchPlan, GlobalBatch, Integers, has_angle
from training.tokenization import TokenisedSet, mini_batch_ends


def plan_report(plan: BatchPlan, sets: dict[str, TokenisedSet], side: SideConfig) -> dict[str, Any]:
    """Batches, rows, tokens and padding, in all and a set; padding as one process with the side's budget has it."""
    per_set: dict[str, dict[str, Any]] = {
        name: {"rows": len(item.rows.anchors), "left_out": plan.left_out[name], "batches": 0, "rows_seen": 0}
        | {"tokens": 0, "padded_tokens": 0, "angle_batches": 0}
        for name, item in sets.items()
    }
    for batch in plan.batches:
        entry, item = per_set[batch.set], sets[batch.set]
        tokens, padded = padded_tokens(item, batch, side)
        entry["batches"] += 1
        entry["rows_seen"] += len(batch.rows)
        entry["tokens"] += tokens
        entry["padded_tokens"] += padded
        entry["angle_batches"] += has_angle(item.rows, batch)
    totals = {
        key: sum(entry[key] for entry in per_set.values())
        for key in ("batches", "rows_seen", "tokens", "padded_tokens", "angle_batches")
    }
    for entry in [totals, *per_set.values()]:
        padded = entry.pop("padded_tokens")
        entry["padding_share"] = round(1 - entry["tokens"] / padded, 4) if padded else 0.0
        entry["angle_share"] = round(entry.pop("angle_batches") / max(entry["batches"], 1), 4)
    return {"digest": plan.digest, "batch_size": side.batch_size, **totals, "sets": per_set}


def padded_tokens(item: TokenisedSet, batch: GlobalBatch, side: SideConfig) -> tuple[int, int]:
    """Tokens of a batch without and with padding, each text counted once a row."""
    lengths = text_lengths(item, batch)
    ends = mini_batch_ends(lengths, side.mini_batch_tokens, side.mini_batch_overhead)
    starts = [0, *ends[:-1]]
    padded = sum((end - start) * int(lengths[end - 1]) for start, end in zip(starts, ends, strict=True))
    return int(lengths.sum()), padded


def text_lengths(item: TokenisedSet, batch: GlobalBatch) -> Integers:
    """The lengths of all texts of a batch, in tokens, sorted."""
    negatives = [
        item.negative_lengths[row][chosen]
        for row, chosen in zip(batch.rows.tolist(), batch.negatives, strict=True)
        if len(chosen)
    ]
    return np.sort(np.concatenate([item.anchor_lengths[batch.rows], item.positive_lengths[batch.rows], *negatives]))
