#!/usr/bin/env bash
# Trains one run with two processes on this machine, as two hosts would; started again, it resumes.
# A signal to this script goes to both, which save and stop after the same step.
#
#   launch/local_2proc.sh CONFIG [--field value ...]
#
# They take the CPU, since two processes cannot share a GPU; JAX_PLATFORMS changes that.
set -euo pipefail
if [[ $# -eq 0 || $1 == -h || $1 == --help ]]; then
  sed -n '2,7s/^# \{0,1\}//p' "$0"
  exit 2
fi
export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
pids=()
for rank in 0 1; do
  jina-jax train "$@" --distributed.coordinator "127.0.0.1:$port" \
    --distributed.processes 2 --distributed.process-id "$rank" &
  pids+=($!)
done
trap 'kill -TERM "${pids[@]}" 2>/dev/null || true' TERM INT
status=0
while ((${#pids[@]} > 0)); do
  code=0
  unset ended
  wait -n -p ended "${pids[@]}" || code=$?
  [[ -v ended ]] || continue # the signal above ended `wait`, and no process yet
  if [[ $ended == "${pids[0]}" ]]; then pids=("${pids[@]:1}"); else pids=("${pids[0]}"); fi
  # The first that fails takes the other along, rather than leave it waiting.
  if ((code != 0 && status == 0)); then
    status=$code
    kill -TERM "${pids[@]}" 2>/dev/null || true
  fi
done
exit "$status"
