#!/usr/bin/env bash
# Part 2's tuning in the central cell (PROTOCOL.md, its amendments): bash results/reference/study/part2/tune.sh trains the central
# teachers of both budgets and carries out the studies of sweeps/part2 (studies.py), two trials at a time; with names of
# studies, only these. Started again, it resumes.
set -euo pipefail
export OMP_NUM_THREADS=1
sweeps=results/reference/study/sweeps/part2
tastes=()
for taste in taste_1 taste_2 taste_3 taste_4; do
  tastes+=(--set "scorers.$taste.overlap=half" --set "scorers.$taste.among=6")
done
for budget in 18432 73728; do
  bench teach --executor local --tasks taste_1,taste_2,taste_3,taste_4 --backbone study-1 --seeds 100 \
    --results results/study/part2/central --set "budget.nfe=$budget" --set "evaluation.points=[1.0]" \
    "${tastes[@]}" --set scorers.taste_2.angle=90 --set scorers.taste_4.angle=90
done
names=("$@")
[ $# -gt 0 ] || for file in "$sweeps"/*.yaml; do names+=("$(basename "$file" .yaml)"); done
for name in "${names[@]}"; do
  bench sweep "$sweeps/$name.yaml" --workers 2 --executor local
done
