#!/usr/bin/env bash
# The main job for one config on this machine, on all of its devices; started again, it resumes.
#
#   launch/local.sh CONFIG [--field value ...]
set -euo pipefail
if [[ $# -eq 0 || $1 == -h || $1 == --help ]]; then
  sed -n '2,4s/^# \{0,1\}//p' "$0"
  exit 2
fi
for verb in prepare train evaluate export; do
  jina-jax "$verb" "$@"
done
