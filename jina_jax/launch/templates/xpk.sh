#!/usr/bin/env bash
# @name@: @slices@ × @accelerator_type@ (@size@, @hosts@ hosts of @chips_per_host@ chips), on a cluster that xpk made.
# Made by `jina-jax launch xpk`. Once for a cluster, the bucket is attached as the storage "runs":
#
#   xpk storage attach runs --type=gcsfuse --bucket=@bucket@ --mount-point=@mount@ --readonly=false \
#     --auto-mount=false --size=1000 --project=@project@ --zone=@zone@ --cluster=@cluster@
@config_copy@
#
#   xpk.sh [--dry-run]     # --dry-run: xpk tells what it would do
set -euo pipefail
xpk workload create \
  --workload=@name@ \
  --project=@project@ \
  --zone=@zone@ \
  --cluster=@cluster@ \
  --tpu-type=@accelerator_type@ \
  --num-slices=@slices@ \
  --docker-image=@image@ \
  --storage=runs \
  --max-restarts=@max_restarts@ \
  --termination-grace-period-seconds=@grace_s@ \
  @spot@ \
  --command=@quoted_command@ \
  "$@"
