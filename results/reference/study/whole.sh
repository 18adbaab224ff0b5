#!/usr/bin/env bash
# The whole study with the chosen settings: bash results/reference/study/whole.sh TO. Runs are made in results/study;
# archives, tables and pages are written in the folder TO, beside copies of these scripts, so that what is published here
# stays as it is. Started again, it resumes.
set -euo pipefail
if [ $# -ne 1 ]; then
  echo "usage: bash $0 TO" >&2
  exit 2
fi
here=$(dirname "$0")
to=$1
export OMP_NUM_THREADS=1
if [ "$(realpath -m "$to")" = "$(realpath "$here")" ]; then
  echo "TO has to be another folder than that of these scripts" >&2
  exit 2
fi
bash "$here/trained_here.sh" results/study
if ! python -c "import bench, statsmodels" 2> /dev/null; then
  echo 'python has no bench, or no statsmodels, with which part 2 is analysed: pip install -e ".[dev]", and activate it' >&2
  exit 3
fi
mkdir -p "$to/part1" "$to/part2"
cp "$here"/*.{py,sh,yaml} "$to"
cp "$here"/part2/*.py "$here/part2/cells.csv" "$here/part2/tuned.yaml" "$to/part2"
bash "$to/part1.sh" study-2 0 1 2 3 4 5 6 7 8 9
bash "$to/part1.sh" study-1 0 1 2
bash "$to/part1.sh" study-3 0 1 2
for seed in {0..9}; do bash "$to/pack.sh" study-2 "$seed" "$to/part1"; done
for seed in {0..2}; do
  bash "$to/pack.sh" study-1 "$seed" "$to/part1"
  bash "$to/pack.sh" study-3 "$seed" "$to/part1"
done
python "$to/scores.py"
python "$to/tried.py" study-1 study-2 study-3
python "$to/read_signs.py" study-2 0 1 2 || echo "RapidOCR's reading is not complete" >&2
bench report results/study/study-1 results/study/study-2 results/study/study-3 --hypotheses "$to/hypotheses.yaml" \
  -o "$to/part1/report"
for cell in {0..35}; do
  # A line that fails stops no other; part2/outcomes.py names what is missing.
  code=0
  python "$to/part2/cell.py" "$cell" || code=$?
  [ "$code" != 130 ] || exit 130
  [ "$code" = 0 ] || echo "cell $cell is not complete" >&2
  python "$to/part2/pack.py" "$cell" "$to/part2" || echo "cell $cell is not packed" >&2
done
python "$to/part2/outcomes.py" results/study/part2
python "$to/part2/picture.py"
python "$to/part2/page.py"
