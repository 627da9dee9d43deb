"""A newcomer's test: every command of README is known to make and the config, and its Python code runs."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from evaluation.study.comparison import ArmScore
from evaluation.study.table import markdown
from pipeline.application import CONFIGS, composed
from pipeline.settings import show
from tests.support.small_bases import tiny_model

README = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")
COMMANDS = ("make", "accelerate", "sbatch", ".venv/bin/python", "python", "pip", "trackio", "wandb")
NOT_COMMANDS = ("sources", "│", "└", "runs/<run>", "configs/schema ←")  # the first words of figures in blocks
NO_CONFIG = {"pytest", "pipeline.core.machine", "ruff", "mypy", "venv", "pip"}  # modules without our config
OTHER_PROGRAMS = {"mkdir", "pip", "trackio", "wandb"}
PROMPTS = {"query": "query: ", "document": "passage: "}


def commands() -> list[str]:
    """Every command of indented blocks, shell blocks and inline code; raises for a line that is none and no figure."""
    blocks = re.sub(r"```python.*?```", "", README, flags=re.DOTALL)
    lines = re.findall(r"^(?:    |\t)(\S.*)$", re.sub(r" *\\\n *", " ", blocks), re.MULTILINE)
    lines += [line for block in re.findall(r"```\w*\n(.*?)```", blocks, re.DOTALL) for line in block.splitlines()]
    found = [line.partition("  #")[0].strip() for line in lines if not line.strip().startswith(NOT_COMMANDS)]
    for command in found:
        assert program(command) in COMMANDS, f"what is this line of README? {command}"
    prose = re.sub(r"```.*?```", "", README, flags=re.DOTALL)
    inline = (" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose))
    return [*found, *(code for code in inline if " " in code and program(code) in COMMANDS)]


def program(command: str) -> str:
    """Its first word that is no assignment."""
    return next((word for word in shlex.split(command) if not re.match(r"[A-Z_]+=", word)), "")


def expanded(command: str) -> list[list[str]]:
    """The processes that a command starts: for make, what it would run."""
    if program(command) != "make":
        return [shlex.split(command)]
    arguments = shlex.split(command)[shlex.split(command).index("make") + 1 :]
    there = ["--old-file=README.md", "READY=README.md"]  # as if .venv were there, and newer than the lock
    make = ["make", "-n", "--no-print-directory", *there, *arguments]
    done = subprocess.run(make, capture_output=True, text=True, cwd=CONFIGS.parent)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return [shlex.split(line) for line in done.stdout.splitlines() if line.strip()]


def check_process(words: list[str]) -> None:
    """The module exists, and its overrides compose to a valid config, as with --cfg job."""
    if Path(words[0]).name in OTHER_PROGRAMS or words == ["accelerate", "launch"]:  # the latter named in prose
        return
    if words[0] == "sbatch":
        assert (CONFIGS.parent / words[1]).is_file()
        return
    assert "-m" in words, words
    module, *rest = words[words.index("-m") + 1 :]
    if module in NO_CONFIG:
        return
    assert importlib.util.find_spec(module), f"no module {module}"
    if module.startswith("benchmarks."):
        return
    overrides = [word for word in rest if "=" in word]
    if module == "pipeline.settings":
        return show(rest[0], composed(*overrides))  # raises where there is no such setting
    assert {word for word in rest if "=" not in word} <= {"--cfg", "job", "--multirun"}, rest
    if "--multirun" in rest:
        overrides.append("run=job")  # a sweep names its runs when it starts
    composed(*overrides)


def test_readme_has_the_commands_that_a_newcomer_needs() -> None:
    targets = {shlex.split(command)[1] for command in commands() if command.startswith("make ")}
    assert targets >= {"demo", "test", "check", "plan", "reproduce", "sweep", "calibrate", "publish"}


@pytest.mark.parametrize("command", sorted(set(commands())))
def test_a_command_of_readme_composes(command: str) -> None:
    if "submitit" in command:
        pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="the extra 'slurm' is not installed")
    for words in expanded(command):
        check_process(words)


def test_the_jobs_of_a_named_sweep_are_separate_runs() -> None:
    (words,) = expanded("make sweep SWEEP=learning_rate RUN=mine")
    assert 'run="mine-${swept:}"' in words


def test_a_sweep_takes_the_given_gpus() -> None:
    (words,) = expanded("make sweep SWEEP=learning_rate GPUS=4")
    assert "launch.processes=4" in words


def test_a_wrong_command_would_be_seen() -> None:
    with pytest.raises(AssertionError, match="nonsense"):
        expanded("make nonsense")
    with pytest.raises(Exception, match="nonsense"):
        check_process(expanded("make plan ARGS=nonsense=1")[-1])
    with pytest.raises(AssertionError, match="no module"):
        check_process(["python", "-m", "training.nonsense"])


def test_the_python_code_runs_and_both_ways_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "runs" / "demo" / "merge" / "model"
    folder.parent.mkdir(parents=True)
    tiny_model(folder, pooling="mean", prompts=PROMPTS)  # like the demo's
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    blocks = [block for block in blocks if "FlagEmbedding" not in block]  # not installed; own test
    names: list[dict[str, Any]] = [{} for _ in blocks]
    for block, space in zip(blocks, names, strict=True):
        exec(compile(block, "README.md", "exec"), space)
    first, second = names
    assert first["documents"].shape[0] == 2
    np.testing.assert_allclose(first["queries"], second["embedding"].numpy(), atol=1e-6)


@pytest.mark.slow
def test_the_commands_that_need_no_gpu_and_no_hub_run(tmp_path: Path, repository: Path) -> None:
    """README's own lines, with the tests' profile instead of the others; they share one chain."""
    ready, binaries = tmp_path / "ready", Path(sys.executable).parent
    ready.touch()
    wanted = "make (reproduce|plan) PROFILE=bge_m3$|make publish REPO=organisation/name$|make sweep SWEEP=learning_rate"
    chain = [command for command in commands() if re.match(wanted, command)]
    chain.sort(key=lambda command: not command.startswith("make reproduce"))  # what the others need
    assert len(chain) == 4
    for command in chain:
        words = [*shlex.split(command), "PROFILE=tiny", f"READY={ready}", f"BIN={binaries}"]
        words.append(f"ARGS=runs={tmp_path} launch.config=none")
        done = subprocess.run(words, capture_output=True, text=True, cwd=repository, env=os.environ)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    assert (tmp_path / "tiny" / "report" / "index.html").is_file()
    assert (tmp_path / "tiny" / "publish" / "model" / "README.md").is_file()
    assert len((tmp_path / "sweep" / "learning_rate" / "sweep.csv").read_text().splitlines()) == 4


def test_the_study_s_tables_are_those_of_its_figures() -> None:
    folder = CONFIGS.parent / "evaluation" / "study"
    rows = ArmScore.read(folder / "study.csv")
    whole = markdown(rows)
    assert whole in (folder / "README.md").read_text(encoding="utf-8")
    header = whole.partition("\n")[0]
    chosen = README[README.index(header) :].partition("\n\n")[0].splitlines()
    assert len(chosen) > 8 and {*chosen} <= {*whole.splitlines()}
    assert {row.arm for row in rows} <= {path.stem for path in (CONFIGS / "arm").glob("*.yaml")}


@pytest.mark.parametrize("option", ["dimensions", "guide", "teacher", "adapter", "average"])
def test_the_figures_of_a_side_s_options_are_those_of_the_settings_next_to_them(option: str) -> None:
    measured = OmegaConf.load(CONFIGS / "arm" / f"asymmetric_{option}.yaml").training.asymmetric
    (row,) = [line for line in README.splitlines() if line.startswith(f"| `{option}: ")]
    written = OmegaConf.merge(*(OmegaConf.create(code) for code in re.findall(r"`(\w+: .+?)`", row)))
    assert {**measured, "teacher": None} == {**written, "teacher": None}  # README names the base
