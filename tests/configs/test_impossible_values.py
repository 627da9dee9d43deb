"""Impossible settings are named before anything runs: values by themselves, and values that don't go together."""

import pytest

from configs.schema.config import Config, LaunchConfig
from configs.schema.data import CleaningConfig, DataConfig, DevConfig, MiningConfig, SourceConfig
from configs.schema.evaluation import EvaluationConfig, PublishConfig, SuiteConfig
from configs.schema.init import BaseConfig, CorpusConfig, InitConfig
from configs.schema.merging import MergingConfig
from configs.schema.rules import problems
from configs.schema.training import HeadsConfig, SideConfig, TrainingConfig

HUB = {"title": "A", "side": "symmetric", "hub": "someone/a", "files": ["a.parquet"]}
NLI = {**HUB, "construction": "nli"}
SUITE = {"benchmark": "MTEB(rus, v1.1)"}
CORPORA = {"pairs": CorpusConfig()}
WITH_HEADS = TrainingConfig(heads=HeadsConfig(kind="frozen"))
NO_TIME = TrainingConfig(arguments={"ddp_timeout": "soon"})


@pytest.mark.parametrize(
    ("part", "key", "words"),
    [
        (LaunchConfig(nodes=2, processes=3), "processes", "multiple of nodes (2)"),
        (BaseConfig(kind="hub"), "hub", "is needed with kind=hub"),
        (BaseConfig(prompts={"query": "", "passage": ""}), "prompts", "exactly the keys query and document; check "),
        (BaseConfig(hidden=30), "hidden", "multiple of 4"),
        (CorpusConfig(kind="web"), "kind", "must be one of pairs, text, hub"),
        (CorpusConfig(kind="text"), "files", "is needed with kind=text"),
        (CorpusConfig(kind="hub", files=["x"]), "hub", "needs hub and columns"),
        (InitConfig(rule="notebook", coverage=0.5, corpora=CORPORA), "rule", "neither coverage nor max_size"),
        (InitConfig(), "corpora", "at least one"),
        (SourceConfig(title="A", side="symmetric"), "hub", "one of hub, path and reader"),
        (SourceConfig(title="A", side="symmetric", hub="someone/a"), "files", "must name the files"),
        (SourceConfig(**HUB, columns={"anchor": "a*"}), "columns", "anchor must be one column"),
        (SourceConfig(**NLI), "labels", "must map the file's labels"),
        (SourceConfig(**NLI, labels={"0": "neutral"}, scores={"yes": 0.5}), "scores", "not yes"),
        (SourceConfig(**NLI, labels={"0": "neutral"}, scores={"entailment": 0.5}), "scores", "not entailment"),
        (SourceConfig(**NLI, labels={"0": "neutral"}, scores={"neutral": 1.0}), "scores.neutral", "and below 1"),
        (SourceConfig(**NLI, labels={"0": "neutral"}, negative_label="yes"), "negative_label", "or null, not yes"),
        (
            SourceConfig(**NLI, labels={"0": "neutral"}, need_negative=True, negative_label=None),
            "need_negative",
            "needs negative_label",
        ),
        (SourceConfig(title="A", side="left"), "side", "must be one of symmetric, asymmetric"),
        (SourceConfig(**HUB, construction="scored_pairs"), "score_range", "the lowest and the highest possible score"),
        (SourceConfig(**HUB, construction="scored_pairs", score_range=[5, 1]), "score_range", "the lowest and the"),
        (
            SourceConfig("x", "symmetric", reader="a.B", construction="nli", labels={"1": "neutral"}),
            "construction",
            "be pairs",
        ),
        (SourceConfig(**HUB, construction="nlu"), "construction", "must be one of pairs"),
        (SourceConfig(**NLI, labels={"0": "yes"}), "labels.0", "must be one of entailment"),
        (SourceConfig(**HUB, weight=0.0), "weight", "must be above 0"),
        (SourceConfig(**NLI, labels={"0": "neutral"}, columns={"title": "x"}), "columns", "title is not a role of nli"),
        (SourceConfig("A", "symmetric", reader="a.B", dev_files=["x"]), "dev_files", "a reader only gives"),
        (DataConfig({"a": SourceConfig(**HUB)}, {"a": SourceConfig(**HUB)}), "held_out", "a is also a training source"),
        (DataConfig({"dev": SourceConfig(**HUB)}), "sources", "dev is a name for the pipeline's own files"),
        (
            DataConfig({"heldout-b": SourceConfig(**HUB)}, {"b": SourceConfig(**HUB)}),
            "sources",
            "heldout-b is a name for",
        ),
        (DataConfig(on_bad_row="ignore"), "on_bad_row", "must be one of error, skip"),
        (DevConfig(share=2.0), "share", "must be at least 0 and below 1"),
        (CleaningConfig(script="English"), "script", "must be none or the name of a Unicode script"),
        (CleaningConfig(unicode="NFX"), "unicode", "must be one of NFC, NFKC, none"),
        (CleaningConfig(min_characters=9, max_characters=8), "min_characters", "at most max_characters (8)"),
        (MiningConfig(range_min=100), "range_min", "below range_max (100)"),
        (MiningConfig(negatives=7, range_min=3, range_max=9), "negatives", "must be at most range_max - range_min (6)"),
        (EvaluationConfig(devices=["cuda:0", "nothing"]), "devices", "'nothing' is no device"),
        (SideConfig(temperature=0.0), "temperature", "above 0"),
        (SideConfig(batch_size=20), "batch_size", "multiple of batch_multiple (8)"),
        (SideConfig(mixing_temperature=0.001), "mixing_temperature", "must be at least 0.1"),
        (SideConfig(mixing="random"), "mixing", "must be one of proportional"),
        (SideConfig(directions=["doc_to_doc"]), "directions", "must contain query_to_doc"),
        (SideConfig(dropout=1.0), "dropout", "at least 0 and below 1"),
        (
            SideConfig(dimensions=[64, 32], dimension_weights=[1.0]),
            "dimension_weights",
            "must be as many as dimensions",
        ),
        (SideConfig(dimensions=[64, 33], angle_weight=0.1), "dimensions", "must be even for AnglE"),
        (SideConfig(dimensions=[64, 32, 32], dimension_weights=[1.0, 1.0, 0.5]), "dimensions", "duplicates"),
        (SideConfig(dimensions=[64, 32], dimension_weights=[0.0, 0.0]), "dimension_weights", "must not all be 0"),
        (SideConfig(directions=["query_to_doc", "doc_to_query", "doc_to_query"]), "directions", "duplicates"),
        (SideConfig(average=3), "average", "needs dev_steps"),
        (SideConfig(average=1, dev_steps=10), "average", "must be at least 2"),
        (SideConfig(epochs=-1.0), "epochs", "above 0"),
        (SideConfig(anchor_length=2), "anchor_length", "at least 4"),
        (
            TrainingConfig(symmetric=SideConfig(start="symmetric")),
            "symmetric.start",
            "asymmetric that starts from init",
        ),
        (
            TrainingConfig(SideConfig(start="asymmetric"), SideConfig(start="symmetric")),
            "symmetric.start",
            "asymmetric that starts from init",
        ),
        (SourceConfig(**HUB, slice=[0.5, 0.2]), "slice", "the first below the second"),
        (SideConfig(mini_batch_tokens=0), "mini_batch_tokens", "must be at least 1"),
        (SideConfig(mini_batch_tokens="all"), "mini_batch_tokens", "must be auto or at least 1, not all"),
        (SideConfig(mini_batch_tokens=511), "mini_batch_tokens", "auto or at least 512, the longest admitted text"),
        (Config("p", "r", precision="fp8"), "precision", "must be one of auto, fp32, bf16, fp16"),
        (
            Config(
                "p", "r", init=InitConfig(corpora=CORPORA), base=BaseConfig(pooling="lasttoken"), training=WITH_HEADS
            ),
            "training.heads.kind",
            "must be none (heads=none) with base.pooling=lasttoken",
        ),
        (
            Config("p", "r", init=InitConfig(corpora=CORPORA), training=NO_TIME),
            "training.joint.arguments.ddp_timeout",
            "a number of seconds, not soon",
        ),
        (Config("p", "r", init=InitConfig(corpora=CORPORA), languages=[]), "languages", "must name at least one"),
        (Config("p", "r", init=InitConfig(corpora=CORPORA), languages=["ru", "ru"]), "languages", "duplicates"),
        (MergingConfig(method="fixed"), "weights", "none are given"),
        (MergingConfig(method="fixed", weights={"init": 0.5}), "weights", "sum to 0.5"),
        (MergingConfig(method="fixed", weights={"init": 1.5, "symmetric": -0.5}), "weights", "-0.5, below 0"),
        (MergingConfig(method="fixed", weights={"init": float("nan")}), "weights.init", "finite number, not nan"),
        (MergingConfig(method="fixed", weights={"initial": 1.0}), "weights", "initial is not among"),
        (MergingConfig(method="average"), "method", "must be one of"),
        (MergingConfig(models=["init"]), "models", "at least two"),
        (
            Config("p", "r", init=InitConfig(corpora=CORPORA), merging=MergingConfig(models=["init", "merge"])),
            "merging.models",
            "can't name this run's merge",
        ),
        (
            Config("p", "r", init=InitConfig(corpora=CORPORA), merging=MergingConfig(models=["base", "symmetric"])),
            "merging.models",
            "can't name base next to models with init's smaller vocabulary",
        ),
        (MergingConfig(models=["init", "init"]), "models", "at least two"),
        (MergingConfig(method="search"), "guard_sources", "at least two"),
        (MergingConfig(method="search", guard_sources=["one", "one"]), "guard_sources", "at least two"),
        (MergingConfig(temperature=0.0), "temperature", "above 0"),
        (MergingConfig(grid_step=0.3), "grid_step", "must divide 1"),
        (MergingConfig(guard=-0.1), "guard", "at least 0 and below 1, or null"),
        (MergingConfig(dtype="float8"), "dtype", "must be one of"),
        (MergingConfig(score=False), "score", "must be true"),
        (MergingConfig(extrapolation_limit=0.9), "extrapolation_limit", "at least 1 and at most 3"),
        (
            MergingConfig(method="extrapolated", guard=None, extrapolation_limit=1.2),
            "extrapolation_limit",
            "must be at least 1 + grid_step (1.25)",
        ),
        (MergingConfig(examples_per_set=0), "examples_per_set", "at least 1"),
        (SuiteConfig(), "tasks", "needs tasks or a benchmark"),
        (SuiteConfig(**SUITE, languages=["rus"]), "languages", "must be empty with a benchmark"),
        (SuiteConfig(kind="retrieval"), "sets", "at least one held-out set"),
        (SuiteConfig(kind="vectors", dimensions=[4, 4]), "dimensions", "duplicates"),
        (SuiteConfig(kind="vectors", dimensions=[1]), "dimensions.0", "at least 2"),
        (SuiteConfig(kind="vectors", precisions=["int8", "int8"]), "precisions", "duplicates"),
        (SuiteConfig(**SUITE, representations=["dense", "dense"]), "representations", "duplicates"),
        (SuiteConfig(**SUITE, representations=[]), "representations", "at least one"),
        (SuiteConfig(**SUITE, sets={"a": "../b"}), "sets.a", "plain name"),
        (PublishConfig(repo="name"), "repo", "must be organisation/name"),
        (
            Config("a", "a", init=InitConfig(corpora=CORPORA), runs=""),
            "runs",
            "must be a folder",
        ),  # else in the file system's root
        (Config("a", "a", init=InitConfig(corpora=CORPORA), runs="~/a"), "runs", "without ~, which is not expanded"),
        (EvaluationConfig(suites=["a"]), "suites", "there is no suite a"),
        (EvaluationConfig(suites=["a", "a"], suite={"a": SuiteConfig(**SUITE)}), "suites", "duplicates"),
    ],
)
def test_impossible_values_are_named(part: object, key: str, words: str) -> None:
    found = list(problems(part))
    assert any(name == key and words in problem for name, problem in found), found


@pytest.mark.parametrize(
    "part",
    [
        SideConfig(),
        SourceConfig(**HUB),
        MergingConfig(),
        MergingConfig(method="search", guard_sources=["one", "two"]),
        MergingConfig(method="search", guard=None),
        MergingConfig(method="extrapolated", guard=None, grid_step=1 / 3, extrapolation_limit=1.333),
        MergingConfig(method="fixed", weights={"symmetric": 0.3, "asymmetric": 0.7}),
        MergingConfig(method="fixed", weights={"symmetric": 0.9, "asymmetric": 0.8}, extrapolate=True),
        MergingConfig(method="fixed", weights={"init": -0.7, "symmetric": 0.9, "asymmetric": 0.8}, extrapolate=True),
    ],
)
def test_possible_values_pass(part: object) -> None:
    assert not list(problems(part))
