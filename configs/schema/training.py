"""Settings of fine-tuning: one dataclass a side."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

MIXINGS = ("proportional", "temperature", "round_robin")
DIRECTIONS = ("query_to_doc", "doc_to_query", "query_to_query", "doc_to_doc")
SCHEDULES = ("linear", "cosine", "constant_with_warmup", "constant")


@dataclass
class SetConfig:
    """What one set has otherwise than its side; null keeps the side's value."""

    weight: float = 1.0  # multiplies the set's share of the batches; 0 leaves the set out
    anchor_length: int | None = None  # tokens, prompt and special tokens included
    positive_length: int | None = None  # also of negatives
    negatives: int | None = None  # most hard negatives taken from a row

    def problems(self) -> Iterator[tuple[str, str]]:
        """Impossible values, as (field, what is wrong)."""
        if not 0 <= self.weight < float("inf"):
            yield "weight", "must be a number of at least 0"
        for name in ("anchor_length", "positive_length"):
            value = getattr(self, name)
            if value is not None and value < 4:
                yield name, "must be at least 4 tokens"
        if self.negatives is not None and self.negatives < 0:
            yield "negatives", "must be at least 0"


@dataclass
class SideConfig:
    """One fine-tuning run. Where a value comes from stands beside it in configs/training/<side>.yaml."""

    learning_rate: float = 1e-5
    warmup: float = 0.1  # share of the steps
    schedule: str = "linear"  # after warm-up: linear, cosine, constant_with_warmup, constant
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    dropout: float = 0.0  # of the encoder while it trains; the saved config keeps the base's
    epochs: float = 1.0  # passes over the data; the mixing decides how often each set is seen
    max_steps: int | None = None  # ends the run earlier (or later) than epochs

    batch_size: int = 256  # rows of a global batch, whatever the number of processes
    batch_multiple: int = 8  # a set's last batch is cut to this; the number of processes must divide it
    bucket_batches: int = 8  # global batches in a bucket of rows of similar length
    anchor_length: int = 512  # tokens, prompt and special tokens included
    positive_length: int = 512  # also of negatives
    negatives: int = 1  # most hard negatives taken from a row
    mixing: str = "proportional"  # proportional, temperature, round_robin
    mixing_temperature: float = 2.0  # of mixing=temperature: shares go with rows ** (1 / temperature)
    sets: dict[str, SetConfig] = field(default_factory=dict)  # exceptions, by name of set

    temperature: float = 0.02  # of the contrastive loss: similarities are divided by it
    directions: list[str] = field(default_factory=lambda: ["query_to_doc"])  # what the softmax runs over
    false_negative_margin: float | None = None  # leave out candidates within it of the positive; null: keep all
    angle_weight: float = 0.0  # of AnglE beside the contrastive loss; 0 switches it off
    angle_scale: float = 20.0  # of AnglE: angles are multiplied by it

    dev_steps: int | None = None  # steps between dev evaluations; null: only at the end
    keep_best: bool = True  # save the weights with the best mean dev score (needs dev_steps)
    checkpoint_steps: int = field(default=500, metadata={"result": False})  # steps between checkpoints
    logging_steps: int = field(default=1, metadata={"result": False})  # steps a line of metrics.jsonl
    mini_batch_tokens: int = field(default=16384, metadata={"result": False})  # padded tokens in memory at once
    # What one more mini-batch costs, in tokens: measured with the demo's base on two cores. More where launching the
    # kernels is what takes the time, as on a GPU with short texts.
    mini_batch_overhead: int = field(default=96, metadata={"result": False})
    arguments: dict[str, Any] = field(default_factory=dict)  # any other SentenceTransformerTrainingArguments

    def lengths(self) -> dict[str, int]:
        """All limits in tokens, those of single sets included, by their config keys below the side's."""
        names = ("anchor_length", "positive_length")
        own = {f"sets.{key}.{name}": getattr(item, name) for key, item in self.sets.items() for name in names}
        return {name: getattr(self, name) for name in names} | {key: value for key, value in own.items() if value}

    def problems(self) -> Iterator[tuple[str, str]]:
        """Impossible values, as (field, what is wrong)."""
        yield from self._problems_of_numbers()
        for name, allowed in (("mixing", MIXINGS), ("schedule", SCHEDULES)):
            if getattr(self, name) not in allowed:
                yield name, f"must be one of {', '.join(allowed)}"
        for direction in self.directions:
            if direction not in DIRECTIONS:
                yield "directions", f"{direction} is not one of {', '.join(DIRECTIONS)}"
        if "query_to_doc" not in self.directions:
            yield "directions", "must contain query_to_doc"
        if self.batch_size % max(self.batch_multiple, 1):
            yield "batch_size", f"must be a multiple of batch_multiple ({self.batch_multiple})"

    def _problems_of_numbers(self) -> Iterator[tuple[str, str]]:
        for name in ("learning_rate", "temperature", "epochs", "mixing_temperature", "angle_scale"):
            if not 0 < getattr(self, name) < float("inf"):
                yield name, "must be above 0"
        for name in ("weight_decay", "angle_weight", "max_grad_norm"):
            if not 0 <= getattr(self, name) < float("inf"):
                yield name, "must be at least 0"
        for name in ("warmup", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                yield name, "must be at least 0 and below 1"
        counts = ("batch_size", "batch_multiple", "bucket_batches", "checkpoint_steps")
        for name in (*counts, "logging_steps", "mini_batch_tokens", "max_steps", "dev_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                yield name, "must be at least 1"
        for name in ("anchor_length", "positive_length"):
            if getattr(self, name) < 4:
                yield name, "must be at least 4 tokens"
        for name in ("negatives", "mini_batch_overhead"):
            if getattr(self, name) < 0:
                yield name, "must be at least 0"


@dataclass
class TrainingConfig:
    """The three ways of fine-tuning from the init model."""

    symmetric: SideConfig = field(default_factory=SideConfig)
    asymmetric: SideConfig = field(default_factory=SideConfig)
    joint: SideConfig = field(default_factory=SideConfig)  # all sets in one run: the baseline for split and merge
    arguments: dict[str, Any] = field(default_factory=dict)  # of all sides; a side's own win
    dev_rows: int = 200  # most rows of a dev set that are scored, while training and when merging
    dev_length: int = 256  # tokens at which dev, guard and report texts are cut
    teraflops: float = 100.0  # a device's sustained 10^12 operations a second, from which `make plan` gets hours

    def problems(self) -> Iterator[tuple[str, str]]:
        """Impossible values, as (field, what is wrong)."""
        if not 0 < self.teraflops < float("inf"):
            yield "teraflops", "must be above 0"
        if self.dev_rows < 1:
            yield "dev_rows", "must be at least 1"
        if self.dev_length < 4:
            yield "dev_length", "must be at least 4 tokens"
