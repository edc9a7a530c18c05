#!/usr/bin/env bash
# sbatch docs/launch/slurm.sh      the paper's model on 8 machines of 8 GPUs
# More options of minidalle may follow, and win over those below.
#SBATCH --job-name=minidalle
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@300
# Five minutes before the end SLURM signals this script; it passes the signal on, the processes save
# after their update and stop, and the job puts itself back into the queue.
set -u
HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=120 # seconds to save in; torchrun would kill after 30
stopped=0
trap 'stopped=1; kill -TERM $STEP; wait $STEP' TERM

srun --kill-on-bad-exit=1 torchrun \
    --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node "${SLURM_GPUS_ON_NODE:-8}" \
    --rdzv-id "$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}" --rdzv-backend c10d \
    --rdzv-endpoint "$HEAD:${PORT:-29500}" \
    -m minidalle dalle --preset 12b --device cuda --compress -1 "$@" &
STEP=$!
wait $STEP
code=$?
if [ "$stopped" = 1 ] || [ "$code" != 0 ]; then
    [ "${SLURM_RESTART_COUNT:-0}" -lt 50 ] && scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
