#!/bin/bash
#SBATCH --job-name=invfusion
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.log
# Train a model under Slurm, from the working copy's root; what is given on the command line wins over the lines above:
#
#   sbatch deploy/slurm.sh invfusion
#   sbatch --nodes=2 --gpus-per-node=8 deploy/slurm.sh invfusion
#
# The working copy, with its environment, lies on storage that all nodes share. Two minutes before its time is over
# training ends with a checkpoint, and the job goes back into the queue, to continue from there.
set -uo pipefail
model=${1:?which model? sbatch deploy/slurm.sh invfusion}
cd "${SLURM_SUBMIT_DIR:?this is run by sbatch}" || exit
export PATH=$PWD/.venv/bin:$PATH OMP_WAIT_POLICY=PASSIVE

stage=$(dvc stage list --name-only | grep -x -e "train@$model" -e "distill@$model") \
    || { echo "error: the pipeline does not train '$model'"; exit 1; }
# What training needs is brought up to date once, on the first node.
python -m flows.reproduce stage || exit

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 20000))
# shellcheck disable=SC2016  # each node has a rank of its own
srun --kill-on-bad-exit=1 bash -c 'exec torchrun --nnodes="$SLURM_NNODES" --node-rank="$SLURM_NODEID" \
    --nproc-per-node="${SLURM_GPUS_ON_NODE:-1}" --master-addr="$1" --master-port="$2" \
    -m components.training.train --model "$3"' node "$head" "$port" "$model" &
step=$!
stopped=
# Not to srun, which would kill the training outright.
trap 'stopped=yes; scancel --signal=TERM "$SLURM_JOB_ID.0"' TERM
wait $step
code=$?
if [ -n "$stopped" ]; then
    wait $step
    scontrol requeue "$SLURM_JOB_ID"
    exit
fi
# The results are DVC's now: `make repro` goes on from them.
[ $code -eq 0 ] && dvc commit --force "$stage"
exit $code
