#!/bin/bash
# The CuPy backend on a machine with a GPU, from this checkout, in less than 540 seconds: tests,
# deviations, times, Numba on the same machine, memcheck, a profile, and what time is left trains a
# row of the paper's table.  Needs python3 with cupy, numpy, numba, scipy, pytest and hypothesis
# (pytest-xdist and torch are used where they are), and REFMMR_DATA.  Results: OUT, or out/gpu.
#   benchmarks/gpu.sh [ROW]
# PARTS names those to run; RESUME a folder with the checkpoint ROW.npz to go on from.
set -u
cd "$(dirname "$0")/.."
ROW=${1:-mnist-cnn-linf-mmr+at} LIMIT=${LIMIT:-540} PYTHON=${PYTHON:-python3}
PARTS=${PARTS:-tests check time numba memcheck profile train}
export OUT=${OUT:-$PWD/out/gpu} PYTHONPATH=$PWD PYTHONUNBUFFERED=1
mkdir -p "$OUT/table1"
# Earlier runs come first, so that the table shows before and after.
[ -e "$OUT/gpu.json" ] || cp benchmarks/results/gpu.json "$OUT"
[ -e "${RESUME:-}/$ROW.npz" ] && cp "$RESUME/$ROW.npz" "$OUT/table1"
say() { echo "== $* [$SECONDS s]"; }
part() { [[ " $PARTS " == *" $1 "* ]] && say "$1"; }

say machine
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
"$PYTHON" -c "import refmmr; refmmr.set_backend('cupy')" || exit 1
if [[ " $PARTS " == *" numba "* ]]; then # its kernels compile while the tests run
  (timeout 140 nice "$PYTHON" benchmarks/gpu.py numba --batches 1 >"$OUT/numba.log" 2>&1) &
fi

if part tests; then
  WORKERS=$("$PYTHON" -c "import xdist" 2>/dev/null && echo "-n 6")
  timeout 150 "$PYTHON" -m pytest -q $WORKERS -p no:cacheprovider -o filterwarnings=default \
    tests/optional/test_nvrtc.py tests/optional/test_cupy_api.py \
    tests/backends/test_cupy_twins.py tests/backends/test_cupy_arrays.py \
    tests/backends/test_cupy_attack.py -k "not stand-in" >"$OUT/tests.log" 2>&1
  echo "pytest: $?"
  grep -E "^(FAILED|ERROR)|passed|failed" "$OUT/tests.log" | tail -25
fi
wait
part check && timeout 60 "$PYTHON" benchmarks/gpu.py check 2>&1 | tee "$OUT/check.txt"
part time && timeout 90 "$PYTHON" benchmarks/gpu.py time 2>&1 | tee "$OUT/time.txt"
part numba && timeout 60 "$PYTHON" benchmarks/gpu.py numba --batches 10 2>&1 | tee -a "$OUT/time.txt"
if part memcheck; then
  timeout 60 compute-sanitizer --tool memcheck --error-exitcode 9 \
    "$PYTHON" benchmarks/gpu.py small >"$OUT/memcheck.log" 2>&1
  echo "memcheck: $? (124: ran out of time)"
  tail -2 "$OUT/memcheck.log"
fi
if part profile; then
  timeout 40 "$PYTHON" benchmarks/gpu.py profile >"$OUT/profile.txt" 2>&1
  echo "profile: $?"
fi
# Loading and the evaluation at the end take some seconds of what is left.
LEFT=$((LIMIT - SECONDS - 30))
if [ $LEFT -ge 20 ] && part train; then
  echo "$ROW, $LEFT seconds"
  timeout $((LEFT + 28)) "$PYTHON" benchmarks/gpu.py train --row "$ROW" --seconds $LEFT
  # One file with a plain name: a row's name has a plus in it, which not every transfer takes.
  tar -czf "$OUT/trained.tar.gz" -C "$OUT" table1
fi
say done
