"""Every profile and every choice of every group composes to a valid, typed config."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from pipeline.application import CONFIGS
from pipeline.config import Config, checked

PROFILES = sorted(path.stem for path in (CONFIGS / "profile").glob("*.yaml"))
GROUPS = ["base", "init", "data", "merging", "evaluation", "tracking"]
CHOICES = [f"{group}={path.stem}" for group in GROUPS for path in sorted((CONFIGS / group).glob("*.yaml"))]
SIDES = [f"training@training.symmetric={path.stem}" for path in sorted((CONFIGS / "training").glob("*.yaml"))]


def composed(*overrides: str) -> Config:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return checked(compose("config", overrides=list(overrides)))


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_composes(profile: str) -> None:
    config = composed(f"profile={profile}")
    assert config.profile == config.run == profile
    assert config.folder("merge") == Path("runs") / profile / "merge"


@pytest.mark.parametrize("choice", CHOICES + SIDES)
def test_a_group_choice_composes(choice: str) -> None:
    composed("profile=tiny", choice)


def test_a_source_can_be_changed_and_left_out_by_name() -> None:
    config = composed("profile=bge_m3", "data.sources.rcb.repeat=2", "~data.sources.terra")
    assert config.data.sources["rcb"].repeat == 2 and "terra" not in config.data.sources
