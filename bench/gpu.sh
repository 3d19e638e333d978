#!/usr/bin/env bash
# All that a GPU machine is needed for, in the order of its worth and in under 25 minutes:
#
#   bench/gpu.sh [--dry-run] [STEP...]      # from a checkout; STEPs: those below, all of them if none is named
#
# Needs a CUDA toolkit (nvcc; compute-sanitizer for its step) and a python3 that has what `machine` asks for. Downloads nothing: the
# package goes into an environment of its own, build/gpu, that sees what python3 has. A step that fails, or that takes longer than it
# may, does not stop those after it. What a step finds is in QKV_GPU_RESULTS (bench/results/gpu) as soon as it is found: log.txt,
# steps.txt, what was measured as JSON and the golden vectors; so a run that is cut off has done what it says in steps.txt. The steps
# may come in several runs, `build` before those that follow it, each of at most QKV_GPU_SECONDS: the texts go on where they ended.
# --dry-run says what each step would run. QKV_CUDA=emulated tries the script on the emulator of the package that python3 has:
# nothing is built then, and nothing timed.
set -uo pipefail
cd "$(dirname "$0")/.."

dry=false
[ "${1:-}" != --dry-run ] || { dry=true; shift; }
results=${QKV_GPU_RESULTS:-$PWD/bench/results/gpu}
allowed=${QKV_GPU_SECONDS:-1440} # for all; the steps' limits are no more together
environment=$PWD/build/gpu
emulated=false
python=$environment/bin/python
[ "${QKV_CUDA:-}" != emulated ] || { emulated=true; python=python3; }
tiny=$($emulated && echo --tiny)
# Of pytest: none of the plugins that happen to be there, whose warnings are no errors either, nor are those of other versions' NumPy.
pytest="-m pytest -q -p no:cacheprovider -W default"
export PATH=$PATH:/usr/local/cuda/bin PYTHONUNBUFFERED=1 PYTEST_DISABLE_PLUGIN_AUTOLOAD=1

# step NAME SECONDS: the function, if it is wanted, for at most so long
step() {
  local name=$1 limit=$2 begun=$SECONDS status tee left=$((allowed - SECONDS))
  [ ${#wanted[@]} -eq 0 ] || [[ " ${wanted[*]} " == *" $name "* ]] || return 0
  [ "$limit" -le "$left" ] || limit=$left
  if $dry; then
    printf '%s, at most %d s:\n%s\n' "$name" "$limit" "$(declare -f "$name" | sed '1,2d;$d')"
    return 0
  fi
  echo "=== $name" | tee -a "$results/log.txt"
  if [ "$limit" -lt 20 ]; then
    echo "$name: no time is left" | tee -a "$results/steps.txt"
    return 0
  fi
  exec 3> >(exec tee -a "$results/log.txt")
  tee=$!
  timeout --kill-after=10 "$limit" bash -uo pipefail -c "$name" >&3 2>&1 3>&-
  status=$?
  exec 3>&-
  timeout 5 tail --pid="$tee" -f /dev/null # no longer: a process that outlives its step keeps it open
  printf '%s: %s, %d s\n' "$name" "$([ "$status" = 0 ] && echo done || echo "status $status")" $((SECONDS - begun)) | tee -a "$results/steps.txt"
}

# at_once N COMMAND: COMMAND with the words of each line that comes in, N of them at a time
at_once() { xargs -P "$1" -L 1 bash -uo pipefail -c "$2 \"\$@\"" "$2"; }

# within SECONDS COMMAND...: for at most so long; what it printed, once it has ended
within() {
  local said status
  said=$(mktemp)
  timeout --foreground --kill-after=5 "$@" >"$said" 2>&1
  status=$?
  cat "$said"
  rm "$said"
  [ "$status" = 0 ] || echo "status $status"
  return "$status"
}

machine() {
  git log --oneline -1
  nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,clocks.max.mem,power.limit --format=csv
  nvcc --version | tail -2
  command -v compute-sanitizer
  python3 - <<'PYTHON'
import importlib.metadata, os, sys
print(sys.version, sys.executable, os.cpu_count(), "CPUs")
missing = []
for name in ("torch", "pybind11", "scikit-build-core", "cmake", "pip", "numpy", "scipy", "ml_dtypes", "safetensors", "pytest"):
    try:
        print(name, importlib.metadata.version(name), end="; ")
    except importlib.metadata.PackageNotFoundError:
        missing.append(name)
print("missing: " + ", ".join(missing) if missing else "nothing is missing")
sys.exit(bool(missing))
PYTHON
}

# Where python3 is itself an environment's, --system-site-packages would show what is below that; and not every python3 has ensurepip.
build() {
  if $emulated; then
    python3 -c 'import qkv._cuda_emulated'
    return
  fi
  export CMAKE_BUILD_PARALLEL_LEVEL=$(nproc)
  python3 -m venv --without-pip "$environment"
  python3 -c 'import sys; print(*(p for p in sys.path if p.endswith("-packages")), sep="\n")' \
    >"$(echo "$environment"/lib/python3*/site-packages)/outer.pth"
  "$python" -m pip install --verbose --no-index --no-deps --no-build-isolation --force-reinstall -Cbuild-dir=build/gpu/build \
    -Ccmake.define.QKV_BUILD_CUDA=ON -Ccmake.define.CMAKE_CUDA_FLAGS=--threads=3 . &&
    "$python" -c 'import qkv; print(qkv.cuda.device_name(), qkv.cuda.compute_capability())'
}

# Every intrinsic against its definition; the words that the GPU gave, for tests/golden.
conformance() {
  if $emulated; then
    "$python" $pytest tests/test_cuda_intrinsics.py -k "pack2 and definition"
    return
  fi
  "$python" tests/cuda/record_golden.py -o "$results/cuda_intrinsics.npz"
}

# The op tests on the device and the models', a process a file: those that tests/test_cuda_suite.py names, Hopper's kernels first.
tests() {
  local only=.
  cd tests
  ! $emulated || only="gemm_sm90 fastest"
  export QKV_CUDA=${QKV_CUDA:-on}
  "$python" test_cuda_suite.py | grep "$only" | OMP_NUM_THREADS=2 OPENBLAS_NUM_THREADS=2 QKV_NUM_THREADS=1 at_once $((($(nproc) + 1) / 2)) on_device
}

on_device() { # FILE PATH DEVICE, which that prints
  local some=()
  ! $emulated || some=(-k names_of_kernels)
  echo "--- $1 $2"
  QKV_TEST_PATH=$2 QKV_TEST_DEVICE=$3 within 150 "$python" $pytest --maxfail=5 -o faulthandler_timeout=60 "${some[@]}" "$1.py" | sed "s/^/$1 $2: /"
}

# Every kernel in one of its shapes, on little work, under each of the sanitizer's tools.
sanitizer() {
  if $emulated; then
    "$python" tests/cuda/small_calls.py softmax wgmma_small
    return
  fi
  printf '%s\n' memcheck racecheck synccheck initcheck | at_once 4 checked_by
}

checked_by() { # TOOL
  within 150 compute-sanitizer --tool "$1" --error-exitcode 9 --print-limit 20 "$python" tests/cuda/small_calls.py | sed "s/^/$1: /"
}

bench() { "$python" -m bench cuda products attention rows tokens $tiny --json "$results/cuda.json"; }

sweep() { "$python" -m bench cuda --sweep $tiny --json "$results/tiles.json"; }

models() { "$python" -m bench cuda models $tiny --json "$results/models.json"; }

wanted=("$@")
export results environment emulated python tiny pytest
export -f at_once within machine build conformance tests on_device sanitizer checked_by bench sweep models
$dry || mkdir -p "$results"
step machine 20
step build 420
step conformance 120
step tests 280
step sanitizer 160
step bench 220
step sweep 80
step models 140
$dry || { echo; cat "$results/steps.txt"; }
