#!/usr/bin/env bash
# base: 1 × v5p-128 (4x4x4, 64 chips in all), as a queued resource of the Cloud TPU
# API, which Google keeps for what exists: prefer GKE. Made by `jina-jax launch queued-resources`.
#
#   queued-resources.sh [--dry-run]     # asks for it, waits, trains; --dry-run prints the commands
#   queued-resources.sh --delete        # ends it, and what is paid for it
#
# It may be stopped and started again at any time; what was preempted is asked for anew.
set -euo pipefail

at=(--project=my-project --zone=us-east5-a)
nodes=(base)
is_dry=
case "${1:-}" in
  --dry-run) is_dry=1 ;;
  --delete)
    gcloud compute tpus queued-resources delete base "${at[@]}" --force --quiet
    exit 0
    ;;
  "") ;;
  *)
    echo "usage: $0 [--dry-run | --delete]" >&2
    exit 2
    ;;
esac

run() {
  if [[ -n $is_dry ]]; then
    printf '%q ' "$@" && echo
  else
    "$@"
  fi
}

state() {
  gcloud compute tpus queued-resources describe base "${at[@]}" \
    --format='value(state.state)' 2>/dev/null || true
}

host=$(
  cat <<'HOST'
# Runs on every host, as root: mounts the bucket and trains in the container, and again after a
# reboot or a failure, from the newest checkpoint; not again when the run is done or something must
# be mended, which codes below 10 tell.
set -uo pipefail
command -v docker >/dev/null || { apt-get update && apt-get install -y docker.io; }
if ! command -v gcsfuse >/dev/null; then
  release="gcsfuse-$(lsb_release -c -s)"
  curl -fsSL https://packages.cloud.google.com/apt/doc/apt-key.gpg >/usr/share/keyrings/cloud.asc
  echo "deb [signed-by=/usr/share/keyrings/cloud.asc] https://packages.cloud.google.com/apt $release main" \
    >/etc/apt/sources.list.d/gcsfuse.list
  apt-get update && apt-get install -y gcsfuse
fi
mkdir -p /mnt/runs /var/cache/jina_jax
mountpoint -q /mnt/runs || gcsfuse -o allow_other --implicit-dirs my-bucket /mnt/runs
registry=$(echo europe-west4-docker.pkg.dev/my-project/jina-jax/tpu:1 | cut -d/ -f1)
gcloud auth configure-docker "$registry" --quiet
status=10
while [ "$status" -ge 10 ]; do
  docker stop --time 180 base >/dev/null 2>&1 && docker rm base >/dev/null
  docker run --name base --privileged --net=host --stop-timeout 180 \
    -v /mnt/runs:/runs -v /var/cache/jina_jax:/cache europe-west4-docker.pkg.dev/my-project/jina-jax/tpu:1 \
    jina-jax train base@v5p:4x4x4 --workdir=/runs/base --data-dir=gs://my-bucket/data/base --cache-dir=/cache --distributed.coordinator=auto
  status=$?
  sleep 10
done
exit "$status"
HOST
)

ask() {
  run gcloud compute tpus queued-resources create base "${at[@]}" \
    --node-id=base \
    --accelerator-type=v5p-128 \
    --runtime-version=v2-alpha-tpuv5 \
    --quiet
}

# Every host of every slice; ends when the first of the slices does.
train() {
  local node
  for node in "${nodes[@]}"; do
    run gcloud compute tpus tpu-vm ssh "$node" "${at[@]}" --worker=all \
      --command="sudo bash -c $(printf '%q' "$host")" &
  done
  wait -n
}

if [[ -n $is_dry ]]; then
  ask
  train
  wait
  exit 0
fi
while true; do
  case "$(state)" in
    "") ask ;;
    ACTIVE)
      if train; then
        echo "done; end what is paid for it with: $0 --delete"
        exit 0
      fi
      ;;
    SUSPENDED | FAILED) gcloud compute tpus queued-resources delete base "${at[@]}" --force --quiet ;;
    *) ;;
  esac
  sleep 30
done
