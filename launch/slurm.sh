#!/bin/bash
# Pretrains on two nodes of eight GPUs, one process a node:
#   sbatch launch/slurm.sh --config=configs/bert.py:base --workdir=/shared/runs/bert
# Two minutes before the time limit SLURM sends SIGTERM: the run saves itself, ends with 75, and
# is queued again; the same for a lost node.
#SBATCH --job-name=lmjax
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=16
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

srun --kill-on-bad-exit=0 python -m experiments.pretrain "$@"
code=$?
if [ "$code" -eq 75 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
