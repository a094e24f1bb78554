#!/usr/bin/env bash
# On a GPU machine without network access, with what docs/benchmarks.md says to carry there:
#
#   benchmarks/offline.sh check FOLDER [SECONDS]     the kernels are right; a sanitizer finds nothing; the first dozen cells
#   benchmarks/offline.sh measure FOLDER [SECONDS]   more cells, costs, tiles for tuning
#
# Writes into FOLDER as it goes, and starts another process after each that was lost.
set -uo pipefail
case ${1-} in check | measure) ;; *) set -- ;; esac
if [ $# -lt 2 ]; then
  sed -n '2,7s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
mkdir -p "$2"
folder=$(cd "$2" && pwd)
cd "$(dirname "$0")/.."
python=$(command -v python3 || command -v python)
export SOFTMAX_OPS_BUNDLE=$PWD/build/sm_90.bundle PYTHONPATH=$PWD/build/site
PATH=$PATH:/usr/local/cuda/bin

cells() {  # for so many seconds
  local end=$((SECONDS + $1)) status
  shift
  while [ $SECONDS -lt $end ]; do
    "$python" -m benchmarks run --results "$folder/cells.json" --budget $((end - SECONDS))s "$@"
    status=$?
    [ $status = 75 ] || [ $status -ge 124 ] || break  # 124 and more: ended by a signal, or by the loader
  done
}

sanitized() {  # of each plan and direction the longest rows, aligned and not, in one process
  local plans='_f16_causal_(tile_k32|warp_k1024|block|cluster|stream|split)' options=(--error-exitcode 9 --tool "$1")
  # cuda-bindings look up entry points of later drivers, which fail.
  [ "$1" = memcheck ] && options+=(--report-api-errors no)
  timeout -k 10 120 compute-sanitizer "${options[@]}" "$python" -m tests.on_gpu --only "$plans" --limit 60 \
    2>&1 | tail -c 20000 > "$folder/$1.txt"
  echo "$1: status ${PIPESTATUS[0]}" | tee -a "$folder/$1.txt"
}

"$python" -m pip install --quiet --no-index --no-deps --target build/site build/wheels/*.whl
case $1 in
  check)
    timeout 200 "$python" -m tests.on_gpu --jobs 12 --limit 8 --json "$folder/on_gpu.json" | tee "$folder/on_gpu.txt"
    cells "${3:-90}" --first 12
    sanitized memcheck
    sanitized racecheck
    ;;
  measure)
    cells "${3:-240}" --skip torch.compile
    [ -e "$folder/costs.json" ] || cp benchmarks/results/costs.json "$folder/costs.json"
    "$python" -m benchmarks costs first eager --results "$folder/costs.json"
    "$python" -m codegen tune 1500 4096 --bundle build/tune.bundle | tee "$folder/tune.txt"
    ;;
esac
