"""What a user gets wrong on the command line ends in one line and exit status 2."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.run import MODULES

BAD_COMMAND_LINES = {
    "an unknown key": (["nonsense=1"], "nonsense"),
    "an unknown nested key": (["data.nonsense=1"], "nonsense"),
    "a misspelt profile": (["profile=demoo"], "profile/demoo"),
    "a misspelt group choice": (["base=nonsense"], "base/nonsense"),
    "a wrong type": (["seed=many"], "seed"),
    "an impossible value": (["side=sideways"], "config key side"),
    "an impossible value of a part": (["launch.processes=0"], "config key launch.processes"),
    "a stage that does not exist": (["stages=[data,nonsense]"], "config key stages"),
    "a run name that is a path": (["run=../elsewhere"], "config key run"),
    "a mirror that does not exist": (["mirror=/no/such/folder"], "config key mirror"),
    "a malformed override": (["seed"], "seed"),
}


def run_module(module: str, *overrides: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", module, *overrides], capture_output=True, text=True, cwd=cwd)


@pytest.mark.parametrize("case", BAD_COMMAND_LINES)
def test_a_bad_command_line_is_one_line_and_status_2(case: str, repository: Path, tmp_path: Path) -> None:
    overrides, named = BAD_COMMAND_LINES[case]
    done = run_module("pipeline.run", "profile=tiny", f"runs={tmp_path}", *overrides, cwd=repository)
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 2, done.stderr
    assert len(lines) == 1 and lines[0].startswith("error: ") and named in lines[0] and "; " in lines[0]
    assert "Traceback" not in done.stdout + done.stderr
    assert not any(tmp_path.rglob("manifest.json"))


@pytest.mark.parametrize("order", [slice(None), slice(None, None, -1)])
def test_cfg_job_prints_the_resolved_config(order: slice, repository: Path) -> None:
    parts = [["--cfg", "job"], ["profile=demo", "seed=7"]][order]
    done = run_module("pipeline.run", *parts[0], *parts[1], cwd=repository)
    assert done.returncode == 0 and "seed: 7" in done.stdout and "profile: demo" in done.stdout


def test_deciding_about_a_run_imports_nothing_heavy(repository: Path) -> None:
    modules = ", ".join(sorted(set(MODULES.values())))
    heavy = "{'torch', 'transformers', 'datasets', 'mteb', 'sklearn'} & set(sys.modules)"
    code = f"import sys, pipeline.run, {modules}; assert not {heavy}, {heavy}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=repository)
    assert done.returncode == 0, done.stderr
