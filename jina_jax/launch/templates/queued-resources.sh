#!/usr/bin/env bash
# {{ name }}: {{ topology.slices }} × {{ machine.accelerator_type }} ({{ topology.size }}, {{ topology.chips }} chips in all), as a queued resource of the Cloud TPU
# API, which Google keeps for what exists: prefer GKE. Made by `jina-jax launch queued-resources`.
#
{% include "config_copy.txt" %}
#   queued-resources.sh [--dry-run]     # asks for it, waits, trains; --dry-run prints the commands
#   queued-resources.sh --delete        # ends it, and what is paid for it
#
# It may be stopped and started again at any time; what was preempted is asked for anew.
set -euo pipefail

at=(--project={{ options.project }} --zone={{ options.zone }})
{% if topology.slices == 1 %}
nodes=({{ name }})
{% else %}
nodes=({% for i in range(topology.slices) %}{{ name }}-{{ i }}{{ "" if loop.last else " " }}{% endfor %})
{% endif %}
is_dry=
case "${1:-}" in
  --dry-run) is_dry=1 ;;
  --delete)
    gcloud compute tpus queued-resources delete {{ name }} "${at[@]}" --force --quiet
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
  gcloud compute tpus queued-resources describe {{ name }} "${at[@]}" \
    --format='value(state.state)' 2>/dev/null || true
}

host=$(
  cat <<'HOST'
{% include "host.sh" %}
HOST
)

ask() {
  run gcloud compute tpus queued-resources create {{ name }} "${at[@]}" \
{% if topology.slices == 1 %}
    --node-id={{ name }} \
{% else %}
    --node-count={{ topology.slices }} --node-prefix={{ name }} \
{% endif %}
    --accelerator-type={{ machine.accelerator_type }} \
    --runtime-version={{ machine.names.runtime_version }} \
{% if options.spot %}
    --spot \
{% endif %}
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
    SUSPENDED | FAILED) gcloud compute tpus queued-resources delete {{ name }} "${at[@]}" --force --quiet ;;
    *) ;;
  esac
  sleep 30
done
