#!/usr/bin/env bash
# The two-machine launch, tried on one: two torchruns that meet at a port, two processes each.
# On real machines run one line of the two on each, with the first one's address in ADDRESS.
# Usage: docs/launch/two_nodes.sh dalle --preset toy --compress -1
# ON: words before each torchrun; the machine's number follows at once (see namespaces.sh).
set -u
ADDRESS=${ADDRESS:-127.0.0.1}
PORT=${PORT:-29511}
PER_NODE=${PER_NODE:-2}

launch() { # the machine's number
    ${ON:+$ON$1} torchrun --nnodes 2 --node-rank "$1" --nproc-per-node "$PER_NODE" \
        --master-addr "$ADDRESS" --master-port "$PORT" -m minidalle "${@:2}"
}

launch 1 "$@" &
launch 0 "$@"
code=$?
wait $! || code=$?
exit "$code"
