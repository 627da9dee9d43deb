"""Planned batches as mini-batches of texts of similar length, and the plan in numbers."""

import dataclasses
import math
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from configs.schema.training import PlannedConfig, SideConfig
from pipeline.core.console import log
from pipeline.core.packed import concatenated, first_position_of, is_packed, packed
from training.batch_plan import BatchPlan, GlobalBatch, Integers, has_angle
from training.memory import MINI_BATCHES_PER_BUDGET, Budget, planned_budget
from training.sets import TokenisedSet

FEWEST_TOKENS = 8_000  # per rank and step; with fewer a GPU is mostly idle
# From the study (configs/sweep/study.yaml): steps of its shortest run, learning rates that raised dev scores (1e-4 for
# the symmetric and 2e-4 for the asymmetric side raised them less), its model's parameters, and up to how many
# parameters these rates are assumed to hold.
FEWEST_STEPS, TRIED_RATES, STUDIED, MOST_PARAMETERS = 60, (1e-5, 5e-5), 28e6, 120e6


class PlannedDataset(torch.utils.data.Dataset[Any]):
    """The tokens of a slice of a global batch; the batch sampler's "indices" are the slices themselves."""

    def __init__(self, sets: Iterable[TokenisedSet], angle_weight: float) -> None:
        self.sets = {item.rows.name: item for item in sets}
        self.angle_weight = angle_weight

    def __len__(self) -> int:
        return sum(len(item) for item in self.sets.values())

    def __getitems__(self, batch: GlobalBatch) -> dict[str, Any]:
        """The collator's input for the batch's rows.

        `texts`: the token ids of each row's anchor, positive and chosen negatives; `score` (rows,); `angle_weight`;
        `others`: other models' vectors of the texts by role, each (rows, 2 + negatives, width).
        """
        item, rows = self.sets[batch.set], self.sets[batch.set].rows
        numbers = zip(rows.anchors[batch.rows], rows.passages_of(batch), strict=True)
        return {
            "texts": [
                [item.anchors[anchor], *(item.passages[text] for text in passages)] for anchor, passages in numbers
            ],
            "score": rows.scores[batch.rows],
            "angle_weight": self.angle_weight if rows.angle else 0.0,
            "others": {role: vectors.of(rows, batch) for role, vectors in item.others.items()},
        }


@dataclasses.dataclass(frozen=True)
class MiniBatchCollator:
    """Collates rows into mini-batches of their distinct texts, sorted by length.

    Mini-batches are packed, or padded to their own longest text. Between processes and to a GPU goes the output of
    `collate`, with all tokens in one tensor: a tensor per mini-batch would take a file descriptor each, of at most
    1,024 on some systems.
    """

    pad_id: int
    budget: Budget
    first_position: int | None = None  # of packed texts (`pipeline.core.packed`); None: texts are padded

    @classmethod
    def of(cls, model: SentenceTransformer, budget: Budget) -> "MiniBatchCollator":
        """The model's collator, which packs texts where the model takes packed ones."""
        return cls(model.tokenizer.pad_token_id, budget, first_position_of(model) if is_packed(model) else None)

    def __call__(self, rows: dict[str, Any]) -> dict[str, Any]:
        """The model's input for each mini-batch, named text_<number>_<input>, and the labels of the loss."""
        return self.to_model_inputs(self.collate(rows))

    def collate(self, rows: dict[str, Any]) -> dict[str, Any]:
        """Labels, and the tokens of all texts concatenated, shortest text first, with the end of each mini-batch.

        Returns `label`, `tokens` (all tokens,), `lengths` (texts,), and `ends`: for each mini-batch the number of texts
        and of tokens up to its end, and the tokens of its longest text.
        """
        places: dict[tuple[int, ...], int] = {}
        positions = [[places.setdefault(tuple(text), len(places)) for text in row] for row in rows["texts"]]
        texts = list(places)
        lengths = np.array([len(text) for text in texts])
        order = np.argsort(lengths, kind="stable")
        lengths = lengths[order]
        ends = ends_within(lengths, self.budget, packed=self.first_position is not None)
        last, rank_of = np.array(ends) - 1, np.argsort(order)
        label = {
            "position": torch.from_numpy(rank_of[np.array(positions)]),
            "score": torch.from_numpy(rows["score"]),
            "tokens": torch.tensor(float(lengths.sum())),
            "angle_weight": rows["angle_weight"],
            **{role: torch.from_numpy(vectors) for role, vectors in rows["others"].items()},
        }
        return {
            "label": label,  # first: the trainer takes the batch size, in rows, from the first tensor
            "tokens": concatenated([texts[index] for index in order]),
            "lengths": torch.from_numpy(lengths),
            "ends": list(zip(ends, lengths.cumsum()[last].tolist(), lengths[last].tolist(), strict=True)),
        }

    def to_model_inputs(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The output of `collate` as the model's input for each mini-batch, on the tokens' device, with the labels."""
        inputs, text, token = {"label": batch["label"]}, 0, 0
        for number, (next_text, next_token, longest) in enumerate(batch["ends"]):
            part = self._features(batch["tokens"][token:next_token], batch["lengths"][text:next_text], longest)
            inputs |= {f"text_{number}_{key}": value for key, value in part.items()}
            text, token = next_text, next_token
        return inputs

    def features(self, texts: Sequence[Sequence[int]]) -> dict[str, Any]:
        """The model's input for one mini-batch."""
        lengths = [len(text) for text in texts]
        return self._features(concatenated(texts), torch.tensor(lengths), max(lengths))

    def _features(self, tokens: Tensor, lengths: Tensor, longest: int) -> dict[str, Any]:
        if self.first_position is not None:
            return packed(tokens, lengths, longest, self.first_position)
        mask = torch.arange(longest, device=tokens.device) < lengths[:, None]
        ids = torch.full(mask.shape, self.pad_id, device=tokens.device).masked_scatter(mask, tokens.long())
        return {"input_ids": ids, "attention_mask": mask.long()}


def ends_within(lengths: Integers, budget: Budget, packed: bool = False) -> list[int]:
    """The end index of each mini-batch of texts sorted by rising length.

    If all of them fit `budget.tokens` at once, and `budget.whole` allows it, they are cut only to save padding.
    Otherwise each takes at most 1 / `MINI_BATCHES_PER_BUDGET` of the budget, so that that many fit at once.
    """

    def ends(max_tokens: int) -> list[int]:
        return packed_ends(lengths, max_tokens) if packed else mini_batch_ends(lengths, max_tokens, budget.overhead)

    if budget.whole and int(lengths.sum()) <= budget.tokens:  # else no cut makes them fit
        found = ends(budget.tokens)
        if packed or with_padding(lengths, found) <= budget.tokens:
            return found
    return ends(budget.tokens // MINI_BATCHES_PER_BUDGET)


def with_padding(lengths: Integers, ends: Sequence[int]) -> int:
    """Tokens, padding included, of all mini-batches that end at `ends`; each is padded to its last, longest text."""
    return sum((end - start) * int(lengths[end - 1]) for start, end in pairwise([0, *ends]))


def packed_ends(lengths: Integers, max_tokens: int) -> list[int]:
    """Where to cut texts into as few mini-batches of at most `max_tokens`, or of one text, as their order allows."""
    totals = np.concatenate([[0], np.cumsum(lengths)])
    ends = [0]
    while ends[-1] < len(lengths):
        fitting = int(np.searchsorted(totals, totals[ends[-1]] + max_tokens, side="right")) - 1
        ends.append(max(fitting, ends[-1] + 1))
    return ends[1:]


def mini_batch_ends(lengths: Integers, max_tokens: int, overhead: int) -> list[int]:
    """Where to cut texts sorted by rising length, so that padding plus `overhead` per mini-batch is minimal.

    Dynamic programming over the cuts: cost[j] = min over i of cost[i] + (j - i) * lengths[j - 1] + overhead, where
    (j - i) * lengths[j - 1] is at most `max_tokens`, or one text.

    Among texts of one length, the best start of a mini-batch is a minimum over a sliding window: a queue of the starts
    that may still become the best one, of equally good ones the first. So the work per text doesn't grow with
    `max_tokens`.
    """
    numbers = np.arange(len(lengths) + 1)
    cost, cut = np.zeros(len(numbers)), [0] * len(numbers)
    changes = np.flatnonzero(np.diff(lengths, prepend=0)).tolist()
    for first, last in pairwise([*changes, len(lengths)]):
        width = int(lengths[first])
        most = max(1, max_tokens // width)
        window = numbers[max(0, first + 1 - most) : first + 1]
        keys = cost[window] - window * width
        useful = (keys == np.minimum.accumulate(keys[::-1])[::-1]).nonzero()[0][: last - first]
        starts = deque(zip(keys[useful].tolist(), window[useful].tolist(), strict=True))
        for end in range(first + 1, last + 1):
            if starts[0][1] < end - most:
                starts.popleft()
            least, cut[end] = starts[0]
            cost[end] = least + end * width + overhead
            while starts and starts[-1][0] > least + overhead:
                starts.pop()
            starts.append((least + overhead, end))
    ends = [len(lengths)]
    while cut[ends[-1]]:
        ends.append(cut[ends[-1]])
    return ends[::-1]


def plan_report(plan: BatchPlan, sets: dict[str, TokenisedSet], side: PlannedConfig) -> dict[str, Any]:
    """The content of plan.json: batches, rows, tokens and padding, in total and per set, the same on every machine.

    Padding and the tokens of the largest batch are those of one process without packing, with the side's budget, or a
    CPU's where that is auto.
    """
    largest, counts = 0, {name: Counter[str]() for name in sets}
    for batch in plan.batches:
        item = sets[batch.set]
        tokens, padded = padded_tokens(item, batch, side)
        seen = {"batches": 1, "rows_seen": len(batch.rows), "tokens": tokens, "padded_tokens": padded}
        counts[batch.set].update(seen | {"angle_batches": int(has_angle(item.rows, batch))})
        largest = max(largest, padded)

    def figures(counted: Counter[str]) -> dict[str, Any]:
        padded, batches = counted["padded_tokens"], counted["batches"]
        return {
            **{name: counted[name] for name in ("batches", "rows_seen", "tokens")},
            "padding_share": round(1 - counted["tokens"] / padded, 4) if padded else 0.0,
            "angle_share": round(counted["angle_batches"] / max(batches, 1), 4),
        }

    per_set = {
        name: {"rows": len(item.rows.anchors), "left_out": plan.left_out[name], **figures(counts[name])}
        for name, item in sets.items()
    }
    totals = figures(sum(counts.values(), Counter()))
    return {"digest": plan.digest, "batch_size": side.batch_size, "largest_batch": largest, **totals, "sets": per_set}


def warn_of_small_steps(side: str, tokens: int, batches: int, ranks: int) -> None:
    """Warn where a rank has so few tokens per step that kernel launches and the gradients' all-reduce dominate."""
    each = round(tokens / max(batches, 1) / ranks)
    if each < FEWEST_TOKENS:
        what = "%s: %d tokens per rank and step leave a GPU mostly idle (fewer than %d): raise training.%s.batch_size"
        log.warning(what + ", and its learning_rate with it, or use fewer GPUs", side, each, FEWEST_TOKENS, side)


def warn_of_untried(side: str, settings: SideConfig, steps: int, parameters: int) -> None:
    """Warn where a run is shorter than those of the study (README), has too few evaluations for keep_best, or an
    untried learning rate."""
    if steps < FEWEST_STEPS and settings.max_steps is None:  # whoever sets max_steps knows the number of steps
        what = "%s: %d steps, but the study's shortest run has %d (README): use more epochs or smaller batches"
        log.warning(what, side, steps, FEWEST_STEPS)
    if settings.keep_best and settings.dev_steps and steps < 2 * settings.dev_steps:
        what = "%s: %d steps have %d evaluation(s) for keep_best to choose from: lower training.%s.dev_steps (%d)"
        log.warning(what, side, steps, math.ceil(steps / settings.dev_steps), side, settings.dev_steps)
    lowest, highest = TRIED_RATES
    if parameters > MOST_PARAMETERS or not lowest <= settings.learning_rate <= highest:
        what = "%s: the study tried learning rates from %g to %g, on %d million parameters; %g is untried on this base"
        log.warning(what + " (SWEEP=learning_rate)", side, lowest, highest, STUDIED / 1e6, settings.learning_rate)


def padded_tokens(item: TokenisedSet, batch: GlobalBatch, side: PlannedConfig) -> tuple[int, int]:
    """Tokens of a batch without and with padding, each text counted once per row."""
    lengths = text_lengths(item, batch)
    return int(lengths.sum()), with_padding(lengths, ends_within(lengths, planned_budget(side)))


def text_lengths(item: TokenisedSet, batch: GlobalBatch) -> Integers:
    """The lengths of all texts of a batch, in tokens, sorted."""
    anchors = item.anchors.lengths[item.rows.anchors[batch.rows]]
    passages = item.passages.lengths[item.rows.passages_of(batch)]
    return np.sort(np.concatenate([anchors, passages.ravel()]))
