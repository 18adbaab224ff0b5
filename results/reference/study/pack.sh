#!/usr/bin/env bash
# The runs of one world and seed, without weights and contact sheets, as an archive in the folder TO:
# bash results/reference/study/pack.sh WORLD SEED TO. All eight have to be finished: three teachers and five lines.
set -euo pipefail
if [ $# -ne 3 ]; then
  echo "usage: bash $0 WORLD SEED TO" >&2
  exit 2
fi
to=$(realpath "$3")/$1-s$2.tar.xz
cd results/study
mapfile -t runs < <(find "$1" -path "*-s$2/summary.json" -printf '%h\n' | sort)
if [ "${#runs[@]}" != 8 ]; then
  echo "${#runs[@]} of 8 runs of $1, seed $2, have finished" >&2
  exit 1
fi
tar cJf "$to" --exclude '*.safetensors' --exclude lock --exclude sheet.png "${runs[@]}"
