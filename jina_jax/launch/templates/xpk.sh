#!/usr/bin/env bash
# {{ name }}: {{ topology.slices }} × {{ machine.accelerator_type }} ({{ topology.size }}, {{ topology.hosts_per_slice }} hosts of {{ topology.chips_per_host }} chips), on a cluster that xpk made.
# Made by `jina-jax launch xpk`. Once for a cluster, the bucket is attached as the storage "runs":
#
#   xpk storage attach runs --type=gcsfuse --bucket={{ options.bucket }} --mount-point={{ mount }} --readonly=false \
#     --auto-mount=false --size=1000 --project={{ options.project }} --zone={{ options.zone }} --cluster={{ options.cluster }}
{% include "config_copy.txt" %}
#
#   xpk.sh [--dry-run]     # --dry-run: xpk tells what it would do
set -euo pipefail
xpk workload create \
  --workload={{ name }} \
  --project={{ options.project }} \
  --zone={{ options.zone }} \
  --cluster={{ options.cluster }} \
  --tpu-type={{ machine.accelerator_type }} \
  --num-slices={{ topology.slices }} \
  --docker-image={{ options.image }} \
  --storage=runs \
  --max-restarts={{ options.max_restarts }} \
  --termination-grace-period-seconds={{ grace_s }} \
{% if options.spot %}
  --spot \
{% endif %}
  --command={{ command | quote }} \
  "$@"
