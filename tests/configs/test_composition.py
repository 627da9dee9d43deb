"""Every profile and every choice of every group composes to a valid, typed config."""

import dataclasses
import math
from itertools import zip_longest
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from pipeline.application import CONFIGS, composed

PROFILES = sorted(path.stem for path in (CONFIGS / "profile").glob("*.yaml"))
GROUPS = ["base", "init", "data", "heads", "merging", "evaluation", "tracking", "training@training.symmetric"]
OF_PROFILES = {
    (key.removeprefix("override /").partition("@")[0], choice)
    for profile in PROFILES
    for default in OmegaConf.load(CONFIGS / "profile" / f"{profile}.yaml").defaults
    if isinstance(default, DictConfig)  # else another profile that it builds on
    for key, choices in default.items()
    for choice in ([choices] if isinstance(choices, str) else choices)
}
CHOICES = [
    [
        f"{group}={path.stem}"
        for path in sorted((CONFIGS / group.partition("@")[0]).glob("*.yaml"))
        if (path.parent.name, path.stem) not in OF_PROFILES
    ]
    for group in GROUPS
]
SWEEPS = sorted(path.stem for path in (CONFIGS / "sweep").glob("*.yaml"))


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_composes(profile: str) -> None:
    config = composed(f"profile={profile}")
    assert config.profile == config.run == profile
    assert config.folder("merge") == Path("runs") / profile / "merge"


@pytest.mark.parametrize("choices", list(zip_longest(*CHOICES)), ids=str)
def test_choices_of_no_profile_compose(choices: tuple[str | None, ...]) -> None:
    """One of every group in one config: none of these excludes another, but for a decoder and heads."""
    without = ["heads=none"] * ("base=qwen3_embedding_0_6b" in choices)
    composed("profile=tiny", *filter(None, choices), *without)


def test_a_source_can_be_changed_and_left_out_by_name() -> None:
    config = composed("profile=bge_m3", "data.sources.rcb.repeat=2", "~data.sources.terra")
    assert config.data.sources["rcb"].repeat == 2 and "terra" not in config.data.sources


def test_a_config_composed_again_follows_its_own_overrides(tmp_path: Path) -> None:
    """Despite what the tests keep between compositions (tests/support/composing.py)."""
    chosen = ["profile=tiny", "merging=ties", "init=opus", "~data.sources.terra"]
    first = composed(*chosen, "seed=7")
    assert (first.seed, first.merging.method, "terra" in first.data.sources) == (7, "ties", False)
    assert composed(*chosen, "seed=7") == first == dataclasses.replace(composed(*chosen), seed=7)
    assert composed(*chosen, "~data.sources.gazeta", "seed=7") != first
    elsewhere = tmp_path / "arm" / "mine.yaml"
    elsewhere.parent.mkdir()
    for seed in (1, 2):
        elsewhere.write_text(f"# @package _global_\nseed: {seed}\n")
        assert composed("profile=tiny", "arm=mine", f"hydra.searchpath=['file://{tmp_path}']").seed == seed


@pytest.mark.parametrize("sweep", SWEEPS)
def test_the_jobs_of_a_sweep_compose_and_leave_its_objective(sweep: str) -> None:
    chosen = ["profile=tiny", f"sweep={sweep}", "run=job"]
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        params = compose("config", overrides=chosen, return_hydra_config=True).hydra.sweeper.params
    grid = {key: values.split(",") for key, values in params.items()}
    assert math.prod(len(values) for values in grid.values()) >= 3
    for end in (0, -1):
        config = composed(*chosen, *(f"{key}={values[end]}" for key, values in grid.items()))
        assert config.borrow and config.objective.partition(".")[0] in config.stages


@pytest.mark.parametrize("launcher", ["submitit_local", "submitit_slurm"])
def test_a_sweep_composes_for_a_cluster(launcher: str) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="the extra 'slurm' is not installed")
    settings = ["hydra.launcher.gpus_per_node=8", "hydra.launcher.timeout_min=720"]
    composed("profile=tiny", "sweep=learning_rate", "run=job", f"hydra/launcher={launcher}", *settings)


@pytest.mark.parametrize("data", ["card", "distinct"])
def test_the_reproduction_has_guards_that_nothing_trains_on(data: str) -> None:
    """Else a search would be refused there; what the YAML says about a benchmark is compared with mteb elsewhere."""
    config = composed("profile=bge_m3", f"data={data}", "merging=search")
    guards = config.merging.guard_sources
    assert len(guards) >= 2 and set(guards) <= config.data.held_out.keys()
    trained = config.data.sources.values()
    hubs = {hub for source in trained for hub in (source.hub, *(also.hub for also in source.also)) if hub}
    for name in guards:
        guard = config.data.held_out[name]
        assert guard.hub not in hubs and (guard.hub or guard.reader)
        assert guard.side == "asymmetric"


def test_official_dev_files_have_their_names_on_the_hub() -> None:
    """No mirror can show a wrong one: it would be wrong there too. Both sets call their validation split val."""
    sources = composed("profile=bge_m3").data.sources
    named = {source.hub: source.dev_files for source in sources.values() if source.dev_files}
    assert named == {"deepvk/ru-WANLI": ["data/val.parquet"], "deepvk/ru-HNP": ["val.parquet"]}
