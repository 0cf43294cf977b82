#!/usr/bin/env bash
# base: 1 × v5litepod-256 (16x16, 64 hosts of 4 chips), on a cluster that xpk made.
# Made by `jina-jax launch xpk`. Once for a cluster, the bucket is attached as the storage "runs":
#
#   xpk storage attach runs --type=gcsfuse --bucket=my-bucket --mount-point=/runs --readonly=false \
#     --auto-mount=false --size=1000 --project=my-project --zone=us-west4-a --cluster=my-cluster
#
#   xpk.sh [--dry-run]     # --dry-run: xpk tells what it would do
set -euo pipefail
xpk workload create \
  --workload=base \
  --project=my-project \
  --zone=us-west4-a \
  --cluster=my-cluster \
  --tpu-type=v5litepod-256 \
  --num-slices=1 \
  --docker-image=europe-west4-docker.pkg.dev/my-project/jina-jax/tpu:1 \
  --storage=runs \
  --max-restarts=100 \
  --termination-grace-period-seconds=180 \
  --command='jina-jax train base@v5e:16x16 --workdir=/runs/base --data-dir=gs://my-bucket/data/base --cache-dir=/cache --distributed.coordinator=auto' \
  "$@"
