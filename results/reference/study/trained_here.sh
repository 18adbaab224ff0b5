#!/usr/bin/env bash
# Exits with 2 if a finished run below the folder ROOT is from an archive, without its weights: it would be taken for one
# that has been made again. bash results/reference/study/trained_here.sh ROOT
set -euo pipefail
if [ $# -ne 1 ]; then
  echo "usage: bash $0 ROOT" >&2
  exit 2
fi
[ -d "$1" ] || exit 0
while IFS= read -r summary; do
  run=$(dirname "$summary")
  if [ -f "$run/spec.json" ] && [ -z "$(find "$run" -name '*.safetensors' -print -quit)" ]; then
    echo "$run is from an archive, without its weights: move what was unpacked there, and start again" >&2
    exit 2
  fi
done < <(find "$1" -name summary.json)
