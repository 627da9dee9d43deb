#!/bin/bash
# The whole chain on several machines of a SLURM cluster. Change the lines below, run `make setup` once, then
#   PROFILE=bge_m3 sbatch configs/accelerate/slurm.sh
# from the repository. The repository must be on a file system that all machines share and that supports file locks.
# Further Hydra overrides go into ARGS. Before its time is up the job gets SIGTERM, saves a checkpoint and stops; the same
# command resumes from there.
#SBATCH --job-name=user-bge-m3
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --output=slurm-%j.log
set -euo pipefail

# What SLURM allots to a machine, whether asked for by --gpus-per-node=8, =h100:8 or --gres=gpu:8; where it says nothing,
# GPUS stays empty and each machine takes the GPUs that it shows, all machines alike.
PER_NODE=${SLURM_GPUS_ON_NODE:-${SLURM_GPUS_PER_NODE:-}}
GPUS=${PER_NODE:+$((SLURM_NNODES * ${PER_NODE##*:}))}
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)  # head would end scontrol by SIGPIPE
MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
export MASTER_ADDR MASTER_PORT GPUS NODES=$SLURM_NNODES PROFILE=${PROFILE:-bge_m3} ARGS=${ARGS:-}
[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK  # else srun gives a task one core

# One launcher a machine; each starts a process a GPU, and they meet at MASTER_ADDR.
srun bash -c 'NODE_RANK=$SLURM_NODEID exec make reproduce PROFILE="$PROFILE" NODES="$NODES" GPUS="$GPUS" ARGS="$ARGS"'
