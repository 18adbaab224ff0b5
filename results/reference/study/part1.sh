#!/usr/bin/env bash
# The runs of part 1 (PROTOCOL.md): bash results/reference/study/part1.sh WORLD SEED... trains the teachers and all lines of each
# seed, in results/study/WORLD, a run for each core at a time. Started again, it resumes.
set -euo pipefail
if [ $# -lt 2 ]; then
  echo "usage: bash $0 WORLD SEED..." >&2
  exit 2
fi
world=$1
shift
bash "$(dirname "$0")/trained_here.sh" "results/study/$world"
D=153600
export OMP_NUM_THREADS=1
order="cascade.params.order=[ocr,pickscore,geneval]"
common=(
  --tasks geneval,ocr,pickscore --backbone "$world" --results "results/study/$world"
  --set "evaluation.guidance_grid=[0.5,1,2,4,8,16]"
)
for seed in "$@"; do
  bench compare --methods opd_analytic,multi_reward,cascade --budget $D --seeds "$seed" "${common[@]}" --set "$order" \
    --set "teachers={geneval: train, ocr: train, pickscore: train}" \
    --set "opd_analytic.evaluation.points=[0.25,0.5,1.0]" --set "multi_reward.evaluation.points=[0.25,0.5,1.0]" \
    --set "cascade.evaluation.points=[0.25,0.3333,0.5,0.6667,1.0]"
  bench compare --methods multi_reward,cascade --budget $((4 * D)) --seeds "$seed" "${common[@]}" --set "$order" \
    --set "evaluation.points=[0.125,0.25,0.3333,0.5,0.6667,1.0]"
done
