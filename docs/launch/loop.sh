#!/usr/bin/env bash
# Train on this machine's GPUs and start again after a fault, at most TRIES times.
# Usage: docs/launch/loop.sh dalle --preset base --device cuda train_dalle.accumulate=2
set -u
PROCESSES=${PROCESSES:-$(python -c "import torch; print(max(torch.cuda.device_count(), 2))")}
TRIES=${TRIES:-20}
trap 'exit 130' INT # Ctrl-C: the processes save and stop, and nothing starts them again

for try in $(seq "$TRIES"); do
    torchrun --standalone --nproc-per-node "$PROCESSES" -m minidalle "$@" && exit 0
    echo "attempt $try ended with an error; starting again from the newest checkpoint" >&2
    sleep "${PAUSE:-10}"
done
exit 1
