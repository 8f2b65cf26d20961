#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A card's first nine minutes: tools/first_gpu_run.sh OUT
#
# For a machine with CUDA, no network, and a Python that has torch; PYTHON names it (default python3). Builds in place and
# installs nothing. Every stage has a time limit, a log OUT/STAGE.log and a line in OUT/summary.json; a stage that fails does
# not stop the next. Exit status: 0 if no stage failed, 1 if one did, 2 for wrong arguments.
#
# GGF_STAGE_SECONDS lowers every limit to so many seconds.
set -u

usage() {
  echo "usage: [PYTHON=python3] tools/first_gpu_run.sh OUT    (OUT: a new or empty folder for logs and JSON)" >&2
  exit 2
}
[ $# -eq 1 ] && [ -n "$1" ] && [ "${1#-}" = "$1" ] || usage
[ ! -e "$1" ] || [ -d "$1" ] || { echo "$1 is no folder; name a new or empty one" >&2; exit 2; }
[ ! -d "$1" ] || [ -z "$(ls -A "$1")" ] || { echo "$1 is not empty; name a new or empty folder" >&2; exit 2; }
mkdir -p "$1" || exit 2
OUT=$(cd "$1" && pwd)
python=${PYTHON:-python3}
PYTHON=$(command -v "$python") || { echo "there is no $python; PYTHON=/path/to/python names one that has torch" >&2; exit 2; }
cd "$(dirname "$0")/.." || exit 2
# Choices that are measured on this card stay with its results.
export GGF_CACHE="$OUT/tuning" GGF_REQUIRE_EXTENSION=1 FORCE_CUDA=1
if [ -z "${TORCH_CUDA_ARCH_LIST:-}" ] && capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -1); then
  # One architecture instead of six: nine minutes are short.
  [ -z "$capability" ] || export TORCH_CUDA_ARCH_LIST="$capability"
fi

failed=0
rows=""
record() { # STAGE RESULT SECONDS
  printf '%-12s %-10s %4s s\n' "$1" "$2" "$3" | tee -a "$OUT/summary.txt"
  rows="$rows${rows:+,}
  {\"stage\": \"$1\", \"result\": \"$2\", \"seconds\": $3, \"log\": \"$1.log\"}"
  printf '[%s\n]\n' "$rows" > "$OUT/summary.json.partial" && mv "$OUT/summary.json.partial" "$OUT/summary.json"
}
stage() { # NAME LIMIT COMMAND...
  local name=$1 limit=$2 began=$SECONDS status result=passed
  shift 2
  [ -z "${GGF_STAGE_SECONDS:-}" ] || [ "$GGF_STAGE_SECONDS" -ge "$limit" ] || limit=$GGF_STAGE_SECONDS
  echo "== $name (at most $limit s): $*"
  timeout --kill-after=3 "$limit" "$@" > "$OUT/$name.log" 2>&1 < /dev/null
  status=$?
  if [ $status -eq 124 ] || [ $status -eq 137 ]; then
    result="timed-out"
  elif [ $status -ne 0 ]; then
    result=failed
  fi
  if [ "$result" != passed ]; then
    failed=1
    tail -n 5 "$OUT/$name.log"
  fi
  record "$name" "$result" $((SECONDS - began))
}
skipped() { # NAME REASON
  echo "$2" | tee "$OUT/$1.log"
  record "$1" skipped 0
}

# The limits, with three seconds each for a process that does not end by itself, add up to less than 540 s.
stage device 20 "$PYTHON" -c 'import torch; assert torch.cuda.is_available(), "torch sees no CUDA device"; print(torch.__version__, torch.cuda.get_device_name())'
stage build 150 make NO_INSTALL=1 PYTHON="$PYTHON" install
stage environment 20 "$PYTHON" -m gangealing_fast.env
stage json 20 "$PYTHON" -m gangealing_fast.env --json
stage tests 115 "$PYTHON" -m pytest -q -p no:cacheprovider -m gpu --junitxml "$OUT/tests.xml" tests/test_gpu.py tests/triton_kernels
sanitizer=$(command -v compute-sanitizer || ls "${CUDA_HOME:-/usr/local/cuda}/bin/compute-sanitizer" 2>/dev/null)
if [ -n "$sanitizer" ]; then
  stage sanitizer 60 "$sanitizer" --tool memcheck --error-exitcode 9 "$PYTHON" -m pytest -q -x -p no:cacheprovider -m gpu \
    -k "nearest_grid_point or invert_grid" tests/test_gpu.py
else
  skipped sanitizer "there is no compute-sanitizer (on the PATH or in CUDA_HOME); it comes with the CUDA toolkit"
fi
stage operators 75 "$PYTHON" -m benchmarks --quick --device cuda --threads 1 --json "$OUT/performance-gpu.json"
stage step 50 "$PYTHON" -m benchmarks.training_step --device cuda --only 64 --rounds 1 --json "$OUT/training-step-gpu.json"

echo
cat "$OUT/summary.txt"
if [ $failed -eq 0 ]; then
  echo "nothing failed; logs and JSON are in $OUT"
else
  echo "something failed: see the logs in $OUT"
fi
exit $failed
