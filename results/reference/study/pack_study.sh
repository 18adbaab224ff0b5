#!/usr/bin/env bash
# The records of a study that tunes, without weights and caches, as an archive in the folder TO:
# bash results/reference/study/pack_study.sh NAME TO, for the study study-NAME
set -euo pipefail
tar cJf "$2/$1.tar.xz" -C results/sweeps --exclude '*.safetensors' --exclude cache --exclude launches --exclude trials "study-$1"
