#!/usr/bin/env bash
# two_nodes.sh with a network between: two namespaces, joined by a cable whose bytes are counted.
# Needs root and iproute2. Usage: docs/launch/namespaces.sh dalle --preset toy --compress -1
set -u
NODE=minidalle$$- # and the machine's number
trap 'ip netns delete ${NODE}0; ip netns delete ${NODE}1' EXIT

ip netns add ${NODE}0 && ip netns add ${NODE}1 || exit 1
ip link add cable netns ${NODE}0 type veth peer name cable netns ${NODE}1 || exit 1
for i in 0 1; do
    ip -n $NODE$i address add 10.77.0.$((i + 1))/24 dev cable
    ip -n $NODE$i link set cable up
    ip -n $NODE$i link set lo up
done

export GLOO_SOCKET_IFNAME=cable NCCL_SOCKET_IFNAME=cable # not the address of the machine's name
ON="ip netns exec $NODE" ADDRESS=10.77.0.1 "$(dirname "$0")/two_nodes.sh" "$@"
code=$?
echo "bytes from the first machine to the second, and back:" \
    "$(ip netns exec ${NODE}0 awk '$1 == "cable:" { print $10, $2 }' /proc/net/dev)"
exit "$code"
