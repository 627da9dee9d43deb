"""Several machines: their launchers meet at one rendezvous; simulated by two launchers on this one."""

import dataclasses
import os
import shlex
import socket
import subprocess
from pathlib import Path

import pytest

from configs.schema.config import Config, LaunchConfig
from pipeline.application import composed
from pipeline.core.artefact import Manifest, read_manifest
from pipeline.core.errors import UserError
from pipeline.launch import launch_command
from pipeline.run import run
from tests.support.runs import finish, start

SCONTROL = "#!/bin/sh\necho node-a\necho node-b\n"
SRUN = """#!/bin/sh
echo "cores of a task: ${SRUN_CPUS_PER_TASK:-not set}"
for node in 0 1; do SLURM_NODEID=$node "$@" || exit; done
"""


def on_nodes(nodes: int, processes: int) -> Config:
    return Config(run="x", launch=LaunchConfig(config="nodes", nodes=nodes, processes=processes))


def test_the_launcher_gets_the_rendezvous_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "node-a")
    monkeypatch.setenv("MASTER_PORT", "29777")
    monkeypatch.setenv("NODE_RANK", "2")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for cores, threads in ((32, 4), (4, 1)):
        monkeypatch.setattr("pipeline.launch.cores", lambda cores=cores: cores)
        command = " ".join(launch_command(on_nodes(3, 24)))
        assert command.endswith(f"--num_cpu_threads_per_process {threads}")
    assert "--num_processes 24 --num_machines 3 --machine_rank 2" in command
    assert "--main_process_ip node-a --main_process_port 29777" in command


def test_machines_without_a_place_to_meet_are_refused_before_anything_is_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    config = composed("profile=tiny", f"runs={tmp_path}", "launch.nodes=2", "stages=[data,symmetric]")
    made = list[str]()
    monkeypatch.setattr("pipeline.run.make", lambda name, _: made.append(name))
    with pytest.raises(UserError, match=r"2 machines need a rendezvous .*MASTER_ADDR"):
        run(config)
    assert not made and not os.listdir(tmp_path)
    config.folder("init").mkdir(parents=True)
    Manifest("init", "complete", "made", {}, {}).write(config.folder("init"))
    run(dataclasses.replace(config, stages=["data"]))
    for alone in (LaunchConfig(), LaunchConfig(nodes=2, config="none")):
        run(dataclasses.replace(config, launch=alone))
    assert made == ["data", *config.stages, *config.stages]


def test_processes_that_can_t_be_split_evenly_are_refused() -> None:
    with pytest.raises(UserError, match=r"multiple of the 6 processes.*training\.asymmetric\.batch_multiple"):
        composed("profile=tiny", "launch.processes=6", "stages=[data,asymmetric]")
    composed("profile=tiny", "launch.processes=6", "stages=[data,merge]")
    composed("profile=bge_m3", "launch.processes=16", "heads=none")  # whose batches of 8 rows nothing trains on


def test_what_each_machine_would_rebuild_is_not_forced_on_several() -> None:
    several = ["profile=tiny", "launch.nodes=2", "force=true"]
    with pytest.raises(UserError, match=r"2 machines would each rebuild data .*launch\.nodes=1.*force"):
        composed(*several, "stages=[symmetric,data]")
    composed(*several, "stages=[symmetric,asymmetric]")  # their ranks make them together
    composed(*several[::2], "stages=[data]")


ASKED = {  # how GPUs are asked for -> the variables that SLURM sets then
    "--gpus-per-node=8": {"SLURM_GPUS_PER_NODE": "8", "SLURM_GPUS_ON_NODE": "8"},
    "--gpus-per-node=h100:8": {"SLURM_GPUS_PER_NODE": "h100:8", "SLURM_GPUS_ON_NODE": "8"},
    "--gpus-per-node=h100:8, an older SLURM": {"SLURM_GPUS_PER_NODE": "h100:8"},
    "--gres=gpu:8 or gpu:h100:8": {"SLURM_GPUS_ON_NODE": "8", "SLURM_JOB_GPUS": "0,1,2,3,4,5,6,7"},
    "whole machines": {},
}


def slurm_job(repository: Path, tmp_path: Path, **variables: str) -> list[str]:
    """The lines that a job on two machines prints: each one's commands, and the cores of a task."""
    for name, text in {"scontrol": SCONTROL, "srun": SRUN}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    job = {"SLURM_JOB_NODELIST": "node-[a-b]", "SLURM_JOB_ID": "123456", "SLURM_NNODES": "2", **variables}
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SRUN_", "GPUS"))}
    environment = kept | job | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "ARGS": "seed=7", "MAKEFLAGS": "-n"}
    script = repository / "configs" / "accelerate" / "slurm.sh"
    done = subprocess.run(["bash", script], capture_output=True, text=True, cwd=repository, env=environment, check=True)
    return done.stdout.splitlines()


@pytest.mark.parametrize("asked", ASKED)
def test_the_slurm_job_starts_the_same_command_on_every_machine(asked: str, repository: Path, tmp_path: Path) -> None:
    lines = slurm_job(repository, tmp_path, **ASKED[asked])
    commands = [line for line in lines if "pipeline.run" in line]
    assert len(commands) == 2 and commands[0] == commands[1]
    overrides = shlex.split(commands[0])[3:]
    counted = ["launch.processes=16"] if ASKED[asked] else []
    assert overrides == ["profile=bge_m3", 'run="bge_m3"', "launch.nodes=2", *counted, "seed=7"]
    composed(*overrides)  # refuses processes that can't share out the batches


def test_where_slurm_sets_nothing_the_machine_s_gpus_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "node-a")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    config = Config(run="x", launch=LaunchConfig(nodes=2))
    command = " ".join(launch_command(config))
    assert "--num_processes 16 --num_machines 2" in command and "nodes.yaml" in command


def test_a_slurm_task_gets_the_cores_that_the_job_asked_for(repository: Path, tmp_path: Path) -> None:
    lines = [line for line in slurm_job(repository, tmp_path, SLURM_CPUS_PER_TASK="64") if line.startswith("cores")]
    assert lines == ["cores of a task: 64"]
    assert "cores of a task: not set" in slurm_job(repository, tmp_path)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.mark.slow
def test_two_machines_train_the_model_of_one_machine_with_two_ranks(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    common = ["profile=tiny", "launch.processes=2", "stages=[data,init,symmetric]"]
    one = start(*common, f"runs={tmp_path}/one", "launch.config=cpu")
    of_two = [*common, f"runs={tmp_path}/two", "launch.config=nodes", "launch.nodes=2"]
    meeting = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    two = [start(*of_two, env=meeting | {"NODE_RANK": str(rank)}) for rank in range(2)]
    for process in (one, *two):
        ended = finish(process)
        assert ended.status == 0, ended
    folders = [tmp_path / name / "tiny" / "symmetric" for name in ("one", "two")]
    manifests = [read_manifest(folder) for folder in folders]
    assert [manifest and manifest.environment["processes"] for manifest in manifests] == [2, 2]
    weights = [load_file(folder / "model" / "model.safetensors") for folder in folders]
    assert weights[0].keys() == weights[1].keys()
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])
