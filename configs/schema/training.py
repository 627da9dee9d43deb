"""Settings of fine-tuning: one dataclass per side, and one for the heads."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

from configs.schema.data import DATA_SIDES
from configs.schema.rules import setting

DIRECTIONS = ("query_to_doc", "doc_to_query", "query_to_query", "doc_to_doc")


@dataclass
class SetConfig:
    """What differs for one set from its side; null keeps the side's value."""

    weight: float = setting(1.0, least=0)  # multiplies the set's share of the batches; 0 leaves the set out
    anchor_length: int | None = setting(None, least=4)  # tokens, prompt and special tokens included
    positive_length: int | None = setting(None, least=4)  # also of negatives
    negatives: int | None = setting(None, least=0)  # most hard negatives taken from a row


@dataclass
class AdapterConfig:
    """Small matrices trained instead of the weights (LoRA, arXiv:2106.09685); full weights are saved."""

    rank: int | None = setting(None, least=1)  # of the matrices; null: train all weights
    alpha: int = setting(16, least=1)  # their product is scaled by alpha / rank
    targets: list[str] = setting(["query", "key", "value", "dense"])  # ends of the names of linear layers to adapt


@dataclass
class PlannedConfig:
    """Settings of every training run: its steps and its planned batches."""

    trains_encoder: ClassVar = True  # not a setting: heads train on a frozen encoder

    learning_rate: float = setting(1e-5, above=0)  # the highest, after warm-up
    warmup: float = setting(0.1, least=0, below=1)  # share of the steps
    # After warm-up; `constant` has no warm-up.
    schedule: str = setting("linear", choices=("linear", "cosine", "constant_with_warmup", "constant"))
    weight_decay: float = setting(0.01, least=0)  # of AdamW
    max_grad_norm: float = setting(1.0, least=0)  # longer gradients are scaled down to it; 0: no clipping
    epochs: float = setting(1.0, above=0)  # passes over the data; mixing determines how often each set is seen
    max_steps: int | None = setting(None, least=1)  # number of steps instead of epochs

    batch_size: int = setting(256, least=1)  # rows of a global batch, whatever the number of processes
    # Maximum tokens of a batch's positives and negatives, padded to the longest: long texts make batches of fewer rows.
    # null: batch_size rows whatever their length.
    batch_tokens: int | None = setting(None, least=1)
    # A set's last batch is cut to a multiple of this; the number of processes must divide it.
    batch_multiple: int = setting(8, least=1)
    bucket_batches: int = setting(8, least=1)  # global batches in a bucket of rows of similar length
    anchor_length: int = setting(512, least=4)  # tokens, prompt and special tokens included
    positive_length: int = setting(512, least=4)  # also of negatives
    negatives: int = setting(1, least=0)  # most hard negatives taken from a row
    # How steps are distributed over the sets: by the batches of a pass, by a power of these, or evenly.
    mixing: str = setting("proportional", choices=("proportional", "temperature", "round_robin"))
    mixing_temperature: float = setting(2.0, least=0.1)  # of mixing=temperature: shares go with batches ** (1 / this)
    sets: dict[str, SetConfig] = setting({})  # exceptions by set; in ARGS as ++<key>={<set>:{weight:0}}

    temperature: float = setting(0.02, above=0)  # of the contrastive loss: similarities are divided by it

    checkpoint_steps: int = setting(500, least=1, result=False)  # steps between checkpoints
    # Steps per line of metrics.jsonl. If more than 1, a run resumed between two lines has an additional line there, of
    # fewer steps; the model is the same.
    logging_steps: int = setting(1, least=1, result=False)
    # Padded tokens whose activations are in memory at once; larger batches go through gradient caching. auto: on a GPU
    # what fits, measured before the first step; on a CPU 8,192. Heads keep no activations: with auto each of their
    # passes has at most token_budget tokens; on a CPU a batch of up to four times as many may be one pass.
    mini_batch_tokens: int | str = setting("auto", choices=("auto",), least=1, result=False)
    arguments: dict[str, Any] = setting({})  # any other SentenceTransformerTrainingArguments

    def lengths(self) -> dict[str, int]:
        """All limits in tokens, including those of single sets, by config key relative to the run's."""
        names = ("anchor_length", "positive_length")
        own = {f"sets.{key}.{name}": getattr(item, name) for key, item in self.sets.items() for name in names}
        return {name: getattr(self, name) for name in names} | {key: value for key, value in own.items() if value}

    @property
    def longest(self) -> int:
        """Tokens of the longest text that is let in."""
        return max(self.lengths().values())

    def limits_of(self, name: str) -> tuple[int, int, int]:
        """Most tokens of a set's anchors, and of its positives and negatives; most negatives taken from its rows."""
        own = self.sets.get(name, SetConfig())
        negatives = self.negatives if own.negatives is None else own.negatives
        return own.anchor_length or self.anchor_length, own.positive_length or self.positive_length, negatives

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.batch_size % self.batch_multiple:
            yield "batch_size", f"must be a multiple of batch_multiple ({self.batch_multiple})"
        if isinstance(self.mini_batch_tokens, int) and self.mini_batch_tokens < self.longest:
            yield "mini_batch_tokens", f"must be auto or at least {self.longest}, the longest admitted text"


@dataclass
class SideConfig(PlannedConfig):
    """One fine-tuning run. The sources of values are given in configs/training."""

    start: str = setting("init", choices=("init", *DATA_SIDES))  # the model of this run that training starts from
    dropout: float = setting(0.0, least=0, below=1)  # of the encoder in training; saved is the base's
    directions: list[str] = setting(["query_to_doc"], choices=DIRECTIONS, distinct=True)  # what the softmax runs over
    # Leave out candidates more similar than the positive minus this, as probable false negatives; null: keep all, or 0
    # with a guide.
    false_negative_margin: float | None = None
    # The model whose similarities identify false negatives (GISTEmbed, arXiv:2402.16829): this run's base or init, a
    # folder, `<Hub id>` or `<Hub id>@<revision>`, with any tokenizer. null: the model in training itself.
    guide: str | None = setting(None, later=True)
    # The model whose in-batch similarities are learned in addition to the contrastive loss; named like a guide. self:
    # with dimensions, full vectors teach the shorter ones.
    teacher: str | None = setting(None, later=True)
    teacher_weight: float = setting(1.0, above=0, later=True)  # of the Kullback-Leibler divergence from it
    # Divides its similarities and the student's.
    teacher_temperature: float = setting(0.02, above=0, later=True)
    angle_weight: float = setting(0.0, least=0)  # of AnglE on symmetric sets, next to 1 for contrastive loss; 0: off
    angle_scale: float = setting(20.0, above=0)  # of AnglE: multiplies the angles
    # The losses are computed on vectors truncated to each of these lengths and added up, so that the model's vectors
    # can be truncated there (Matryoshka, arXiv:2205.13147). Empty: on full vectors only.
    dimensions: list[int] = setting([], least=1, distinct=True, later=True)
    dimension_weights: list[float] = setting([], least=0, later=True)  # of their losses, in order; empty: 1 each
    # For a small GPU.
    adapter: AdapterConfig = field(default_factory=AdapterConfig, metadata={"unless": AdapterConfig()})

    dev_steps: int | None = setting(None, least=1)  # steps between dev evaluations; null: only at the end
    keep_best: bool = True  # save the weights with the best mean dev score (needs dev_steps)
    # Save the mean of the weights at this many last evaluations (a soup, arXiv:2203.05482); with keep_best only if no
    # single evaluation scored higher. With an adapter, its matrices are averaged. null: none.
    average: int | None = setting(None, least=2, later=True)

    @property
    def auxiliary_models(self) -> dict[str, str]:
        """The models whose vectors training reads, by role."""
        wanted = {"guide": self.guide, "teacher": self.teacher if self.teacher != "self" else None}
        return {role: model for role, model in wanted.items() if model is not None}

    @property
    def weight_of_dimension(self) -> dict[int | None, float]:
        """The weight of each vector length on which the losses are computed; None is the full length."""
        if not self.dimensions:
            return {None: 1.0}
        return dict(zip(self.dimensions, self.dimension_weights or [1.0] * len(self.dimensions), strict=True))

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.dimension_weights and len(self.dimension_weights) != len(self.dimensions):
            yield "dimension_weights", f"must be as many as dimensions ({len(self.dimensions)}), or empty"
        if self.dimension_weights and not any(self.dimension_weights):
            yield "dimension_weights", "must not all be 0: nothing would be learned"
        if self.angle_weight and (odd := [width for width in self.dimensions if width % 2]):
            yield "dimensions", f"must be even for AnglE, which uses a vector's halves; {odd[0]} is odd"
        if self.teacher == "self" and not self.dimensions:
            yield "teacher", "can't be self without dimensions: full vectors have nothing to teach themselves"
        if self.average and not self.dev_steps:
            yield "average", "needs dev_steps: it averages the weights at the last evaluations"
        if "query_to_doc" not in self.directions:
            yield "directions", "must contain query_to_doc"
        yield from super().problems()


@dataclass
class HeadsConfig(PlannedConfig):
    """Sparse and multi-vector heads, fitted on the asymmetric sets. For the sources of values see configs/heads."""

    # frozen: fitted to the unchanged merged encoder. joint: no such stage; the sides train heads along with their
    # encoders, at this learning_rate and on the side's own batches, and the merge weights them like the encoders.
    # none: only the base's heads, if any.
    kind: str = setting("frozen", choices=("frozen", "joint", "none"))

    # Not settings: heads train on the merge, whose encoder is frozen.
    trains_encoder: ClassVar = False
    start: ClassVar[str] = "merge"
    dropout: ClassVar[float] = 0.0
    angle_weight: ClassVar[float] = 0.0
    adapter: ClassVar = AdapterConfig()
    auxiliary_models: ClassVar[dict[str, str]] = {}


@dataclass
class TrainingConfig:
    """The three fine-tuning runs, and the heads."""

    symmetric: SideConfig = field(default_factory=SideConfig)
    asymmetric: SideConfig = field(default_factory=SideConfig)
    joint: SideConfig = field(default_factory=SideConfig)  # all sets in one run: the baseline for split and merge
    heads: HeadsConfig = field(default_factory=HeadsConfig)  # after the merge
    arguments: dict[str, Any] = setting({})  # of all of them; a run's own take precedence
    # Of batch order, dropout, new adapters and heads fitted to the merge; null: the run's seed.
    seed: int | None = setting(None, least=0)
    # A device's sustained 10^12 operations per second, from which `make plan` derives hours. auto: a share of its
    # measured matrix product rate.
    teraflops: float | int | str = setting("auto", choices=("auto",), above=0)
    dev_rows: int = setting(200, least=1)  # maximum rows scored per dev set, in training and merging
    dev_length: int = setting(256, least=4)  # tokens at which dev and guard texts are truncated

    def problems(self) -> Iterator[tuple[str, str]]:
        one, other = DATA_SIDES
        for name in DATA_SIDES:
            first = getattr(self, name).start
            if first == name or (first != "init" and getattr(self, first).start != "init"):
                yield f"{name}.start", f"must be init, or {one if name == other else other} that starts from init"
