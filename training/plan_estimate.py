"""The work of a side before its data are there: from the sizes and lengths that its source files expect."""

import dataclasses
from collections.abc import Iterator

from configs.schema.config import Config
from configs.schema.data import SourceConfig
from configs.schema.training import SetConfig, SideConfig
from data.ledger import expected
from pipeline.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class SetEstimate:
    """What is assumed of one set. Texts of a kind are taken to be as long as their mean, cut at the side's limit."""

    name: str
    pairs: int  # in one epoch
    texts: dict[str, list[float]]  # role -> tokens of a row's texts of that role
    assumed: bool  # False: the source file says nothing of lengths, so texts are as long as the side allows

    @property
    def tokens(self) -> float:
        """Tokens of a row."""
        return sum(sum(lengths) for lengths in self.texts.values())

    @property
    def squares(self) -> float:
        """Sum of the squared lengths of a row's texts."""
        return sum(length**2 for lengths in self.texts.values() for length in lengths)


def estimates(config: Config, name: str) -> list[SetEstimate]:
    """The sets of a side; raises UserError where the size of none is known."""
    side: SideConfig = getattr(config.training, name)
    sources = {key: source for key, source in config.data.sources.items() if name in (source.side, "joint")}
    found = [item for key, source in sources.items() for item in _estimates(key, source, side)]
    if not found:
        raise UserError("the sets' sizes aren't known yet", where=f"side {name}", remedy="make them: make data")
    return found


def _estimates(name: str, source: SourceConfig, side: SideConfig) -> Iterator[SetEstimate]:
    """None for a set that is left out or of unknown size; one for each kind of positive otherwise."""
    of_set = side.sets.get(name, SetConfig())
    pairs = min(filter(None, (expected(source), source.max_rows)), default=0)
    if not pairs or not of_set.weight:
        return
    limits = {
        "anchor": of_set.anchor_length or side.anchor_length,
        "positive": of_set.positive_length or side.positive_length,
    }
    most = side.negatives if of_set.negatives is None else of_set.negatives
    negatives = min(most, source.max_negatives or most) if "negative" in source.tokens else 0
    kinds = source.tokens.get("positive") or [limits["positive"]]
    for kind in kinds:
        texts = {
            "anchor": [_mean_cut(source.tokens.get("anchor"), limits["anchor"])],
            "positive": [float(min(kind, limits["positive"]))],
            "negatives": [_mean_cut(source.tokens.get("negative"), limits["positive"])] * negatives,
        }
        yield SetEstimate(name, source.repeat * pairs // len(kinds), texts, bool(source.tokens))


def _mean_cut(kinds: list[int] | None, limit: int) -> float:
    cut = [min(kind, limit) for kind in kinds or [limit]]
    return sum(cut) / len(cut)
