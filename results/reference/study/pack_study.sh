#!/usr/bin/env bash
# The records of a study that tunes, without weights and caches, as an archive in the folder TO:
# bash results/reference/study/pack_study.sh NAME TO, for the study study-NAME
set -euo pipefail
if [ $# -ne 2 ]; then
  echo "usage: bash $0 NAME TO" >&2
  exit 2
fi
tar cJf "$2/$1.tar.xz" -C results/sweeps --exclude '*.safetensors' --exclude cache --exclude launches --exclude trials "study-$1"
