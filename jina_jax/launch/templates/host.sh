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
mountpoint -q /mnt/runs || gcsfuse -o allow_other --implicit-dirs {{ options.bucket }} /mnt/runs
registry=$(echo {{ options.image }} | cut -d/ -f1)
gcloud auth configure-docker "$registry" --quiet
status=10
while [ "$status" -ge 10 ]; do
  docker stop --time {{ grace_s }} {{ name }} >/dev/null 2>&1 && docker rm {{ name }} >/dev/null
  docker run --name {{ name }} --privileged --net=host --stop-timeout {{ grace_s }} \
    -v /mnt/runs:{{ mount }} -v /var/cache/jina_jax:{{ cache }} {{ options.image }} \
    {{ command }}
  status=$?
  sleep 10
done
exit "$status"
