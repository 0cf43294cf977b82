#!/usr/bin/env bash
# Writes the examples of this folder: what `jina-jax launch` makes of the shipped configs.
#
#   launch/generate.sh [FOLDER]
set -euo pipefail
out=${1:-$(dirname "$0")}
image=europe-west4-docker.pkg.dev/my-project/jina-jax/tpu:1
at=(--image "$image" --bucket my-bucket --project my-project)

jina-jax launch gke base@v5e:16x16 "${at[@]}" >"$out/gke-jobset.yaml"
jina-jax launch xpk base@v5e:16x16 "${at[@]}" --zone us-west4-a --cluster my-cluster >"$out/xpk.sh"
jina-jax launch gce-mig base@v6e:8x8 "${at[@]}" --zone europe-west4-a --spot >"$out/gce-mig.sh"
jina-jax launch queued-resources base@v5p:4x4x4 "${at[@]}" --zone us-east5-a >"$out/queued-resources.sh"
jina-jax launch skypilot base@v6e:8x8 "${at[@]}" --spot >"$out/skypilot.yaml"
jina-jax launch slurm base@h100:8 --partition gpu >"$out/slurm.sbatch"
chmod +x "$out"/*.sh
