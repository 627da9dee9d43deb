"""The environment is made once, and again when the lock's contents change; git sees neither it nor a link to it."""

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

PYTHON = """#!/bin/sh
mkdir -p .venv/bin
printf '#!/bin/sh\\necho "$*" >> calls\\n' > .venv/bin/python
chmod +x .venv/bin/python
"""


@pytest.fixture
def checkout(repository: Path, tmp_path: Path) -> Path:
    """The Makefile next to a lock, with a Python that makes environments whose pip only records its arguments."""
    for name in ("Makefile", ".gitignore"):
        shutil.copyfile(repository / name, tmp_path / name)
    (tmp_path / "requirements.lock").write_text("numpy==2.0\n")
    (tmp_path / "python3").write_text(PYTHON)
    (tmp_path / "python3").chmod(0o755)
    return tmp_path


def installs(checkout: Path) -> int:
    """How often `make setup` calls pip."""
    (checkout / "calls").write_text("")
    subprocess.run(["make", "setup", "PYTHON=./python3"], cwd=checkout, check=True, capture_output=True)
    return sum(line.startswith("-m pip install") for line in (checkout / "calls").read_text().splitlines())


def test_the_environment_is_made_once_whatever_the_date_of_the_lock(checkout: Path) -> None:
    assert installs(checkout) == 2  # torch, and the rest
    assert installs(checkout) == 0
    os.utime(checkout / "requirements.lock", (4e9, 4e9))
    assert installs(checkout) == 0


def test_the_environment_is_made_again_when_the_lock_s_contents_change(checkout: Path) -> None:
    installs(checkout)
    lock = checkout / "requirements.lock"
    lock.write_text("numpy==2.1\n")
    os.utime(lock, (1, 1))
    assert installs(checkout) == 2
    assert installs(checkout) == 0


def test_stages_are_made_one_after_the_other_even_with_parallel_make(checkout: Path) -> None:
    installs(checkout)
    (checkout / ".venv/bin/python").write_text("#!/bin/sh\necho begin >> calls\nsleep 0.2\necho end >> calls\n")
    (checkout / "calls").unlink()
    subprocess.run(["make", "-j2", "data", "init"], cwd=checkout, check=True, capture_output=True)
    assert (checkout / "calls").read_text().split() == ["begin", "end"] * 2


def test_modules_are_compiled_once_whatever_the_environment_says(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    installs(checkout)
    (checkout / ".venv/bin/python").write_text('#!/bin/sh\necho "writes${PYTHONDONTWRITEBYTECODE:+ nothing}" > calls\n')
    subprocess.run(["make", "data"], cwd=checkout, check=True, capture_output=True)
    assert (checkout / "calls").read_text() == "writes\n"


@pytest.mark.parametrize("target", ["data", "demo"])
@pytest.mark.parametrize("run", ["опыт", "ru+en, (2)", "1.10", "2026_11_29", "true"])  # the last ones must stay texts
@pytest.mark.parametrize("mark", ["", '"'])
def test_a_run_may_have_any_name(target: str, run: str, mark: str, repository: Path) -> None:
    asked = ["make", "-n", target, f"RUN={mark}{run}{mark}"]
    made = subprocess.run(asked, cwd=repository, capture_output=True, text=True, check=True)
    (command,) = [line for line in made.stdout.splitlines() if "pipeline.run" in line]
    parsed = OverridesParser.create().parse_overrides(shlex.split(command)[3:])
    assert {one.key_or_group: one.value() for one in parsed}["run"] == run


@pytest.mark.parametrize("model", ["BAAI/bge-m3@main", "runs/опыт/model", "runs/rate=1e-05/model", "new (1)", ""])
@pytest.mark.parametrize("mark", ["", '"', "'"])
def test_a_model_s_folder_may_have_any_name(model: str, mark: str, repository: Path) -> None:
    asked = ["make", "-n", "calibrate", f"MODEL={mark * bool(model)}{model}{mark * bool(model)}"]
    made = subprocess.run(asked, cwd=repository, capture_output=True, text=True, check=True)
    (command,) = [line for line in made.stdout.splitlines() if "pipeline.run" in line]
    parsed = OverridesParser.create().parse_overrides(shlex.split(command)[3:])
    assert {one.key_or_group: one.value() for one in parsed}["evaluation.models"] == [model] * bool(model)


def test_a_key_may_have_the_placeholder_that_settings_shows(repository: Path) -> None:
    asked = ["make", "-n", "settings", "KEY=data.sources.<name>.side"]
    made = subprocess.run(asked, cwd=repository, capture_output=True, text=True, check=True)
    assert "pipeline.settings 'data.sources.<name>.side' profile=" in made.stdout


@pytest.mark.parametrize(("target", "usual"), [("demo", "demo"), ("calibrate", "calibration")])
def test_no_variable_is_ignored(target: str, usual: str, repository: Path) -> None:
    for given, wanted in ([], (usual, 1)), (["PROFILE=tiny", "RUN=mine", "GPUS=4", "NODES=2"], ("mine", 2)):
        made = subprocess.run(
            ["make", "-n", target, *given], cwd=repository, capture_output=True, text=True, check=True
        )
        (command,) = [line for line in made.stdout.splitlines() if "pipeline.run" in line]
        parsed = OverridesParser.create().parse_overrides(shlex.split(command)[3:])
        values = {one.key_or_group: one.value() for one in parsed}
        assert (values["run"], values["launch.nodes"]) == wanted
        assert (values["profile"], values.get("launch.processes")) == (("tiny", 4) if given else ("demo", None))


@pytest.mark.parametrize(("target", "run"), [("data", "mine"), ("calibrate", "mine"), ("sweep", "mine-${swept:}")])
def test_a_run_may_be_named_in_the_environment(target: str, run: str, repository: Path) -> None:
    command, environment = ["make", "-n", target, "SWEEP=joint"], {**os.environ, "RUN": "mine"}
    made = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, check=True)
    assert f"'run=\"{run}\"'" in made.stdout


def test_a_sweep_over_several_machines_is_refused(repository: Path) -> None:
    asked = ["make", "-n", "sweep", "SWEEP=joint", "NODES=2"]
    done = subprocess.run(asked, cwd=repository, capture_output=True, text=True)
    assert done.returncode != 0 and "leave NODES out" in done.stderr


def test_an_environment_that_is_a_link_is_ignored_by_git(checkout: Path) -> None:
    (checkout / "elsewhere").mkdir()
    (checkout / ".venv").symlink_to("elsewhere")
    subprocess.run(["git", "init", "--quiet"], cwd=checkout, check=True)
    seen = subprocess.run(["git", "status", "--short"], cwd=checkout, check=True, capture_output=True, text=True).stdout
    assert "Makefile" in seen and ".venv" not in seen


def test_a_python_that_is_too_old_is_one_line_that_says_which_to_use(checkout: Path) -> None:
    (checkout / "python3").write_text(
        "#!/bin/sh\n[ \"$1\" = -c ] || exit 9\necho 'Python 3.11 is needed' >&2\nexit 1\n"
    )
    done = subprocess.run(["make", "setup", "PYTHON=./python3"], cwd=checkout, capture_output=True, text=True)
    assert done.returncode != 0 and "Python 3.11 is needed" in done.stderr and not (checkout / ".venv").exists()


@pytest.mark.parametrize(("target", "key", "one"), [("bench", "NAME", "merging"), ("sweep", "SWEEP", "study")])
def test_a_target_that_needs_a_name_lists_the_choices(repository: Path, target: str, key: str, one: str) -> None:
    done = subprocess.run(["make", "-n", target], cwd=repository, capture_output=True, text=True)
    assert done.returncode != 0 and f"make {target} {key}=<one of: " in done.stderr and one in done.stderr
