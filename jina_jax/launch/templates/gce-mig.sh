{% set region = options.zone.rpartition("-")[0] %}
#!/usr/bin/env bash
# {{ name }}: one {{ machine.accelerator_type }} ({{ topology.size }}, {{ topology.hosts_per_slice }} hosts of {{ topology.chips_per_host }} chips), as a managed instance group of
# Compute Engine. Made by `jina-jax launch gce-mig`. Every host trains from its start-up script.
#
{% include "config_copy.txt" %}
#   gce-mig.sh [--dry-run]     # makes the group; --dry-run prints the commands instead
#   gce-mig.sh --delete        # ends it, and what is paid for it
set -euo pipefail

run() { "$@"; }
case "${1:-}" in
  --dry-run) run() { printf '%q ' "$@" && echo; } ;;
  --delete)
    gcloud compute instance-groups managed delete {{ name }} --project={{ options.project }} --zone={{ options.zone }} --quiet
    gcloud compute instance-templates delete {{ name }} --project={{ options.project }} --region={{ region }} --quiet
    gcloud compute resource-policies delete {{ name }} --project={{ options.project }} --region={{ region }} --quiet
    exit 0
    ;;
  "") ;;
  *)
    echo "usage: $0 [--dry-run | --delete]" >&2
    exit 2
    ;;
esac

startup=$(mktemp)
trap 'rm -f "$startup"' EXIT
cat >"$startup" <<'HOST'
#!/bin/bash
{% include "host.sh" %}
HOST

run gcloud compute resource-policies create workload-policy {{ name }} \
  --project={{ options.project }} --region={{ region }} \
  --type=HIGH_THROUGHPUT --accelerator-topology={{ topology.size }}
run gcloud compute instance-templates create {{ name }} \
  --project={{ options.project }} --instance-template-region={{ region }} \
  --machine-type={{ machine.machine_type }} \
  --image-family=ubuntu-accel-2204-amd64-tpu-v5e-v5p-v6e \
  --image-project=ubuntu-os-accelerator-images \
  --boot-disk-size=500GB --maintenance-policy=TERMINATE --scopes=cloud-platform \
{% if options.spot %}
  --provisioning-model=SPOT --instance-termination-action=DELETE \
{% endif %}
  --metadata-from-file=startup-script="$startup"
# A host that is replaced alone would not be of the slice.
run gcloud compute instance-groups managed create {{ name }} \
  --project={{ options.project }} --zone={{ options.zone }} --size={{ topology.hosts_per_slice }} \
  --template="projects/{{ options.project }}/regions/{{ region }}/instanceTemplates/{{ name }}" \
  --workload-policy="projects/{{ options.project }}/regions/{{ region }}/resourcePolicies/{{ name }}" \
  --default-action-on-vm-failure=do-nothing
echo "log of a host: gcloud compute ssh HOST --project={{ options.project }} --zone={{ options.zone }} \
--command='sudo journalctl -f -u google-startup-scripts'"
