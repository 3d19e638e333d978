#!/usr/bin/env bash
# All that a GPU machine is needed for, in the order of its worth and in under 25 minutes:
#
#   bench/gpu.sh [--dry-run] [STEP...]      # from a checkout; STEPs: those below, all of them if none is named
#
# Needs a CUDA toolkit (nvcc; compute-sanitizer for its step) and a python3 that has torch, pybind11, scikit-build-core, cmake, numpy,
# ml_dtypes, safetensors and pytest. Downloads nothing: the package goes into an environment of its own, build/gpu, that sees what
# python3 has. What a step finds is in bench/results/gpu/ as soon as it is found, so a run that is cut off has done what it says in
# steps.txt. A step that fails, or that takes longer than it may, does not stop those after it.
# --dry-run says what each step would run. QKV_CUDA=emulated tries the script on the emulator of the package that python3 has:
# nothing is built then, and nothing timed.
set -uo pipefail
cd "$(dirname "$0")/.."

dry=false
[ "${1:-}" != --dry-run ] || { dry=true; shift; }
results=$PWD/bench/results/gpu
environment=$PWD/build/gpu
allowed=1500 # seconds, for all
emulated=false
python=$environment/bin/python
[ "${QKV_CUDA:-}" != emulated ] || { emulated=true; python=python3; results=${QKV_GPU_RESULTS:-$results}; }
tiny=$($emulated && echo --tiny)

# step NAME SECONDS COMMAND...: if it is wanted, for at most so long, with its output in NAME.txt
step() {
  local name=$1 limit=$2 begun=$SECONDS status left=$((allowed - SECONDS))
  shift 2
  [ ${#wanted[@]} -eq 0 ] || [[ " ${wanted[*]} " == *" $name "* ]] || return 0
  [ "$limit" -le "$left" ] || limit=$left
  if $dry; then
    printf '%s, at most %d s:\n%s\n' "$name" "$limit" "$(declare -f "$1" | sed '1,2d;$d')"
    return 0
  fi
  printf '=== %s\n' "$name"
  if [ "$limit" -lt 20 ]; then
    echo "$name: no time is left" | tee -a "$results/steps.txt"
    return 0
  fi
  timeout --kill-after=10 "$limit" bash -uo pipefail -c "$(declare -f "$1"); $1" 2>&1 | tee "$results/$name.txt"
  status=${PIPESTATUS[0]}
  printf '%s: %s, %d s\n' "$name" "$([ "$status" = 0 ] && echo done || echo "status $status")" $((SECONDS - begun)) | tee -a "$results/steps.txt"
}

machine() {
  git log --oneline -1
  nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,clocks.max.mem,power.limit --format=csv
  nvcc --version | tail -2
  python3 - <<'PYTHON'
import importlib.util, os, sys
missing = [n for n in ("torch", "pybind11", "scikit_build_core", "numpy", "ml_dtypes", "safetensors", "pytest") if not importlib.util.find_spec(n)]
print(sys.version, os.cpu_count(), "CPUs;", "missing: " + ", ".join(missing) if missing else "nothing is missing")
PYTHON
}

build() {
  if $emulated; then
    python3 -c 'import qkv._cuda_emulated'
    return
  fi
  export CMAKE_BUILD_PARALLEL_LEVEL=$(nproc)
  python3 -m venv --system-site-packages "$environment"
  "$python" -m pip install --no-index --no-deps --no-build-isolation --force-reinstall -Cbuild-dir=build/gpu/build \
    -Ccmake.define.QKV_BUILD_CUDA=ON .
  "$python" -c 'import qkv; print(qkv.cuda.device_name(), qkv.cuda.compute_capability())'
}

# Every intrinsic against its definition; the words that the GPU gave, for tests/golden.
conformance() {
  if $emulated; then
    "$python" -m pytest -q -p no:cacheprovider tests/test_cuda_intrinsics.py -k "pack2 and definition"
    return
  fi
  "$python" tests/cuda/record_golden.py -o "$results/cuda_intrinsics.npz"
}

# The op tests on the device, products and attention first, then all the others.
tests() {
  cd tests
  local files=(test_cuda_gemm_sm90 test_gemm test_attention test_attention_varlen test_cuda_attention_paged test_cuda_gemm_quantized)
  local file status=0 options=(-q -p no:cacheprovider --maxfail=5)
  if $emulated; then
    files=(test_cuda_gemm_sm90)
    options+=(-k names_of_kernels)
  fi
  export QKV_CUDA=${QKV_CUDA:-on}
  for file in "${files[@]}"; do
    QKV_TEST_DEVICE=cuda "$python" -m pytest "${options[@]}" "$file.py" || status=1
  done
  $emulated || QKV_CUDA= "$python" -m pytest -q -p no:cacheprovider test_cuda_suite.py -k "on-" || status=1
  return $status
}

# Every kernel once on a small shape under each of the sanitizer's tools.
sanitizer() {
  local tool status=0 run=("$python" tests/cuda/small_calls.py)
  if $emulated; then
    "${run[@]}" softmax wgmma_small
    return
  fi
  for tool in memcheck racecheck synccheck initcheck; do
    echo "--- $tool"
    timeout 90 compute-sanitizer --tool "$tool" --error-exitcode 9 --print-limit 20 "${run[@]}" || status=1
  done
  return $status
}

bench() { "$python" -m bench cuda products attention rows tokens $tiny --json "$results/cuda.json"; }

sweep() { "$python" -m bench cuda --sweep $tiny --json "$results/tiles.json"; }

models() { "$python" -m bench cuda models $tiny --json "$results/models.json"; }

wanted=("$@")
export results environment emulated python tiny
$dry || { mkdir -p "$results" && : >"$results/steps.txt"; }
step machine 30 machine
step build 420 build
step conformance 120 conformance
step tests 420 tests
step sanitizer 240 sanitizer
step bench 300 bench
step sweep 150 sweep
step models 240 models
$dry || { echo; cat "$results/steps.txt"; }
