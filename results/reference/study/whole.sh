#!/usr/bin/env bash
# The whole study with the chosen settings: bash results/reference/study/whole.sh. Started again, it resumes.
set -euo pipefail
here=$(dirname "$0")
bash "$here/part1.sh" study-2 0 1 2 3 4 5 6 7 8 9
python "$here/read_signs.py" study-2 0 1 2
bash "$here/part1.sh" study-1 0 1 2
bash "$here/part1.sh" study-3 0 1 2
for seed in {0..9}; do bash "$here/pack.sh" study-2 "$seed" "$here/part1"; done
for seed in {0..2}; do
  bash "$here/pack.sh" study-1 "$seed" "$here/part1"
  bash "$here/pack.sh" study-3 "$seed" "$here/part1"
done
python "$here/scores.py"
python "$here/tried.py" study-1 study-2 study-3
bench report results/study/study-1 results/study/study-2 results/study/study-3 --hypotheses "$here/hypotheses.yaml" \
  -o results/study/report
for cell in {0..35}; do
  # A line that fails stops no other; part2/outcomes.py names what is missing.
  python "$here/part2/cell.py" "$cell" || echo "cell $cell is not complete" >&2
  python "$here/part2/pack.py" "$cell" "$here/part2" || echo "cell $cell is not packed" >&2
done
python "$here/part2/outcomes.py" results/study/part2
python "$here/part2/picture.py"
python "$here/part2/page.py"
