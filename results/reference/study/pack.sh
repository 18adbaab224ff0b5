#!/usr/bin/env bash
# The finished runs of one world and seed, without weights and contact sheets, as an archive in the folder TO:
# bash results/reference/study/pack.sh WORLD SEED TO
set -euo pipefail
to=$(realpath "$3")/$1-s$2.tar.xz
cd results/study
find "$1" -path "*-s$2/summary.json" -printf '%h\n' | sort | tar cJf "$to" --exclude '*.safetensors' --exclude lock --exclude sheet.png -T -
