#!/usr/bin/env bash
# Part 2's tuning in the central cell (PROTOCOL.md, its amendments): bash results/reference/study/part2/tune.sh trains the central
# teachers of both budgets and carries out the studies of sweeps/part2 (studies.py), two trials at a time; with names of
# studies, only these. Started again, it resumes. It takes about 2.7 hours on two cores.
set -euo pipefail
export OMP_NUM_THREADS=1
sweeps=results/reference/study/sweeps/part2
python results/reference/study/part2/central.py
names=("$@")
[ $# -gt 0 ] || for file in "$sweeps"/*.yaml; do names+=("$(basename "$file" .yaml)"); done
for name in "${names[@]}"; do
  bench sweep "$sweeps/$name.yaml" --workers 2 --executor local
done
