"""A trial of some steps before a long run: what it shows, and that it leaves nothing."""

import os
import re
import sys
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

from tests.support.prepared_data import composed
from tests.support.runs import run_main
from training.workload import estimates


def in_this_process(command: list[str], environment: dict[str, str], name: str, log: Path) -> None:
    """In place of `launch.run_command`: nothing is imported again."""
    assert (command[:3], environment) == ([sys.executable, "-m", "pipeline.run"], dict(os.environ))
    GlobalHydra.instance().clear()  # the trial's, which has composed its config
    ended = run_main(*command[3:])
    assert ended.status == 0, ended.err


def test_some_steps_at_the_profile_s_shape_show_speed_memory_and_hours_and_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.trial.run_command", in_this_process)
    overrides = ["profile=tiny", "stages=[symmetric]", "launch.config=none", f"runs={tmp_path}"]
    others = ["training.symmetric.guide=base", "training.symmetric.teacher=of/the_hub"]  # none is made or fetched
    ended = run_main(*overrides, *others, module="pipeline.trial")
    assert ended.status == 0, ended.err
    shown = dict(re.findall(r"^ *(\S.*?\S)  +(\S+(?: GiB)?) *$", ended.out, re.MULTILINE))
    rate, tokens = (float(shown[f"tokens {of}"].replace(",", "")) for of in ("per second", "of the run"))
    config = composed(*overrides)
    sets = estimates(config, "symmetric")
    a_row = sum(item.pairs * item.tokens for item in sets) / sum(item.pairs for item in sets)
    assert tokens == pytest.approx(config.training.symmetric.max_steps * 16 * a_row, rel=0.01)
    assert float(shown["hours of the run"]) == pytest.approx(tokens / rate / 3600, rel=0.06)
    assert 0 < float(shown["share of the peak"]) < 1 and shown["peak memory of a device"].endswith("GiB")
    assert not list(tmp_path.glob("trial-*"))


@pytest.mark.parametrize(
    ("override", "what"), [("stages=[data]", "no side is to be trained"), ("launch.nodes=2", "runs on one machine")]
)
def test_what_can_t_be_tried_is_refused(override: str, what: str, tmp_path: Path) -> None:
    ended = run_main("profile=tiny", f"runs={tmp_path}", override, module="pipeline.trial")
    assert ended.status == 2 and what in ended.err
