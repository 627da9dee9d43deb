"""A rule next to a default is enforced: a value up to its bound passes, beyond it its key is named."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from types import NoneType
from typing import Any, get_args, get_origin

import pytest
from omegaconf import MISSING

from configs.schema.config import STAGES, Config
from configs.schema.data import HubFiles, SourceConfig
from configs.schema.init import CorpusConfig
from configs.schema.rules import BOUNDS, problems, setting
from configs.schema.training import SetConfig

TO_BE_GIVEN = {"hub", "tasks", "corpora"}  # a source needs a place, a suite its tasks, init something to count
NAMES, NO_NAMES = ["a", "а.б", "..."], ["", ".", "..", "a/b", "/", "a\0"]


def parts(part: type) -> Iterator[type]:
    """A dataclass of the config, and those below it."""
    yield part
    for field in dataclasses.fields(part):
        for kind in (field.type, *get_args(field.type)):
            if isinstance(kind, type) and dataclasses.is_dataclass(kind):
                yield from parts(kind)


PARTS = sorted(set(parts(Config)), key=lambda part: part.__name__)
RULES = [
    pytest.param(part, field, rule, id=f"{part.__name__}.{field.name}")
    for part in PARTS
    for field in dataclasses.fields(part)
    if (rule := field.metadata.get("rule"))
]


def examples(rule: Mapping[str, Any], whole: bool) -> tuple[list[Any], list[Any]]:
    """Values that a rule just accepts, and those that it just refuses."""

    def neighbour(bound: float, direction: int) -> float:
        return bound + direction if whole else math.nextafter(bound, direction * math.inf)

    if "name" in rule:
        return NAMES, NO_NAMES
    if "choices" in rule:
        return list(rule["choices"]), ["nonsense", ""]
    if "keys" in rule:
        return [], []
    outside = {"above": -1, "least": -1, "below": 1, "most": 1}  # the direction
    taken, refused = [], [] if whole else [math.nan, math.inf, -math.inf]
    for name in BOUNDS.keys() & rule:
        inclusive, bound, direction = name in ("least", "most"), rule[name], outside[name]
        taken.append(bound if inclusive else neighbour(bound, -direction))
        refused.append(neighbour(bound, direction) if inclusive else bound)
    return taken, refused


def inside(field: dataclasses.Field, value: Any) -> Any:
    """A value of the field: the value itself, or one item of the list or dictionary that the field is."""
    kind = get_origin(field.type)
    return [value] if kind is list else {"key": value} if kind is dict else value


@pytest.mark.parametrize(("part", "field", "rule"), RULES)
def test_a_rule_is_kept_to_its_bounds(
    part: Any, field: dataclasses.Field, rule: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(part, "problems", lambda part: (), raising=False)  # only the rules

    def refused(value: Any) -> bool:
        return any(key.split(".")[0] == field.name for key, _ in problems(part(**{field.name: value})))

    good, bad = examples(rule, whole=int in (field.type, *get_args(field.type)))
    assert not [value for value in good if refused(inside(field, value))]
    assert not [value for value in bad if not refused(inside(field, value))]
    assert len(bad) >= 1 or "keys" in rule
    if "keys" in rule:
        assert not refused(dict.fromkeys(rule["keys"])) and refused({"nonsense": None})
    if "name" in rule and get_origin(field.type) is dict:
        assert not [name for name in NO_NAMES if not refused({name: "value"})]
    if NoneType in get_args(field.type):
        assert not refused(None)


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.__name__)
def test_a_default_keeps_its_own_rule(part: Any) -> None:
    missing = {field.name for field in dataclasses.fields(part) if field.default == MISSING}
    assert {key.split(".")[-1] for key, _ in problems(part())} <= missing | TO_BE_GIVEN


def test_a_problem_is_found_at_any_depth_and_named_by_its_key() -> None:
    config = Config(run="x", stages=["data", "nonsense"])
    config.data.sources["a"] = SourceConfig(side="left", also=[HubFiles(), HubFiles(files=[math.nan])])  # type: ignore[list-item]
    config.training.joint.sets["b"] = SetConfig(weight=-1.0)
    config.training.arguments["adam"] = {"betas": [0.9, math.inf]}
    config.init.corpora["../c"] = CorpusConfig()
    config.init.max_size = 5
    assert list(problems(config)) == [
        ("stages.1", f"must be one of {', '.join(STAGES)}, not nonsense"),
        ("init.max_size", "must be at least 6, or null"),
        ("init.corpora", "'../c' must be a plain name for a file or folder, of up to 255 bytes"),
        ("data.sources.a.side", "must be one of symmetric, asymmetric, not left"),
        ("data.sources.a.also.1.files.0", "must be a finite number, not nan"),
        ("training.joint.sets.b.weight", "must be at least 0"),
        ("training.arguments.adam.betas.1", "must be a finite number, not inf"),
    ]


def test_a_tie_is_checked_where_every_value_is_possible_by_itself() -> None:
    @dataclasses.dataclass
    class Shared:
        rows: int = setting(8, least=1)
        ways: int = setting(2, least=1)

        def problems(self) -> Iterator[tuple[str, str]]:
            if self.rows % self.ways:
                yield "rows", "must be a multiple of ways"

    assert list(problems(Shared(), "some")) == []
    assert list(problems(Shared(ways=3), "some")) == [("some.rows", "must be a multiple of ways")]
    assert list(problems(Shared(ways=0), "some")) == [("some.ways", "must be at least 1")]


def test_instances_do_not_share_a_default() -> None:
    first, second = Config(), Config()
    first.languages.append("kk")
    first.base.prompts["query"] = "query: "
    assert second.languages == ["ru", "en"] and second.base.prompts["query"] == ""
