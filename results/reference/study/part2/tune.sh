#!/usr/bin/env bash
# Part 2's tuning in the central cell (PROTOCOL.md, the amendment of part 2): bash results/reference/study/part2/tune.sh STUDY... trains
# the central teachers and carries out studies of sweeps/part2, two trials at a time. Started again, it resumes.
set -euo pipefail
export OMP_NUM_THREADS=1
tastes=()
for taste in taste_1 taste_2 taste_3 taste_4; do
  tastes+=(--set "scorers.$taste.overlap=half" --set "scorers.$taste.among=6")
done
bench teach --executor local --tasks taste_1,taste_2,taste_3,taste_4 --backbone study-1 --seeds 100 \
  --results results/study/part2/central --set budget.nfe=73728 --set "evaluation.points=[1.0]" \
  "${tastes[@]}" --set scorers.taste_2.angle=90 --set scorers.taste_4.angle=90
for study in "$@"; do
  bench sweep "results/reference/study/sweeps/part2/$study.yaml" --workers 2 --executor local
done
