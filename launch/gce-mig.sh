#!/usr/bin/env bash
# base: one v6e-64 (8x8, 16 hosts of 4 chips), as a managed instance group of
# Compute Engine. Made by `jina-jax launch gce-mig`. Every host trains from its start-up script.
#
#   gce-mig.sh [--dry-run]     # makes the group; --dry-run prints the commands instead
#   gce-mig.sh --delete        # ends it, and what is paid for it
set -euo pipefail

run() { "$@"; }
case "${1:-}" in
  --dry-run) run() { printf '%q ' "$@" && echo; } ;;
  --delete)
    gcloud compute instance-groups managed delete base --project=my-project --zone=europe-west4-a --quiet
    gcloud compute instance-templates delete base --project=my-project --region=europe-west4 --quiet
    gcloud compute resource-policies delete base --project=my-project --region=europe-west4 --quiet
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
    jina-jax train base@v6e:8x8 --workdir=/runs/base --data-dir=gs://my-bucket/data/base --cache-dir=/cache --distributed.coordinator=auto
  status=$?
  sleep 10
done
exit "$status"
HOST

run gcloud compute resource-policies create workload-policy base \
  --project=my-project --region=europe-west4 \
  --type=HIGH_THROUGHPUT --accelerator-topology=8x8
run gcloud compute instance-templates create base \
  --project=my-project --instance-template-region=europe-west4 \
  --machine-type=ct6e-standard-4t \
  --image-family=ubuntu-accel-2204-amd64-tpu-v5e-v5p-v6e \
  --image-project=ubuntu-os-accelerator-images \
  --boot-disk-size=500GB --maintenance-policy=TERMINATE --scopes=cloud-platform \
  --provisioning-model=SPOT --instance-termination-action=DELETE \
  --metadata-from-file=startup-script="$startup"
# A host that is replaced alone would not be of the slice.
run gcloud compute instance-groups managed create base \
  --project=my-project --zone=europe-west4-a --size=16 \
  --template="projects/my-project/regions/europe-west4/instanceTemplates/base" \
  --workload-policy="projects/my-project/regions/europe-west4/resourcePolicies/base" \
  --default-action-on-vm-failure=do-nothing
echo "log of a host: gcloud compute ssh HOST --project=my-project --zone=europe-west4-a \
--command='sudo journalctl -f -u google-startup-scripts'"
