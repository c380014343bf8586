#!/usr/bin/env bash
# All that is to be done on a new GPU, unattended, in less than nine minutes: build, tests, sanitizers, benchmarks.
#
#   bench/gpu.sh           everything
#   bench/gpu.sh --quick   with what is built already, and half the time for the benchmarks; no sanitizers
#
# Every part has a time limit, and none stops the others. What is printed last are the benchmarks' tables and a line for
# every part; both, the results file and the logs are left in $OUT (default: build/gpu). Exits non-zero if a part failed.
#
# Needs torch with CUDA, nvcc of the same CUDA version and g++; pytest for the tests. Nothing is downloaded. Python
# packages that are missing can be brought along as wheels, in the folder $WHEELS (default: .wheels, which git must be
# told to ignore). For Python 3.12 they come from
#
#   pip download --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
#     --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 --platform manylinux_2_17_x86_64 \
#     --platform manylinux2014_x86_64 -d .wheels \
#     numpy==2.4.6 scipy==1.17.1 safetensors==0.8.0 platformdirs==4.14.5 click==8.5.1 \
#     pytest==9.2.0 pluggy iniconfig packaging pygments
#
# of which only those that are not there need to be brought.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
export PYTHONUNBUFFERED=1
PYTHON=${PYTHON:-python3}
WHEELS=${WHEELS:-.wheels}
out=${OUT:-build/gpu}
quick=0
[[ ${1:-} == --quick ]] && quick=1
mkdir -p "$out" build
out=$(realpath "$out")
rm -f "$out"/{environment,build,tests,sanitizers,benchmarks}.log "$out"/{summary.txt,tables.md,results.json}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export PYTHONPATH=$scratch/site${PYTHONPATH:+:$PYTHONPATH}
export XDG_CACHE_HOME=$scratch/cache # tables and compiled kernels: of this run alone
export TORCHINDUCTOR_CACHE_DIR=$scratch/inductor TRITON_CACHE_DIR=$scratch/triton
failed=$scratch/failed

# report NAME RESULT: a line of the summary
report() {
  printf '%4ds  %-34s %s\n' "$SECONDS" "$1" "$2" | tee -a "$out/summary.txt"
}

# limited SECONDS COMMAND...: like timeout, but waits no longer for a process that even SIGKILL does not end, as one
# whose kernel hangs may be. 124: out of time.
limited() {
  local limit=$1 deadline=$((SECONDS + $1 + 20)) process
  shift
  timeout --kill-after=5 "$limit" "$@" &
  process=$!
  while kill -0 "$process" 2>/dev/null; do
    ((SECONDS < deadline)) || return 124
    sleep 0.2
  done
  wait "$process"
}

# until_end SECONDS: as many, or fewer if the phase ends sooner
until_end() {
  local left=$((phase_end - SECONDS))
  echo $(($1 < left ? $1 : left > 1 ? left : 1))
}

# step NAME SECONDS LOG COMMAND...: a part, its output in a log, its result in the summary
step() {
  local name=$1 limit lines=$scratch/output.$BASHPID log=$out/$3 code result last
  limit=$(until_end "$2")
  shift 3
  limited "$limit" "$@" >"$lines" 2>&1
  code=$?
  case $code in
    0) result=ok ;;
    124 | 137) result="FAILED: not done after $limit s" ;;
    *) result="FAILED: code $code" ;;
  esac
  { printf '\n==== %s: %s\n' "$name" "$result" && tail -c 3000000 "$lines"; } >>"$log"
  last=$(grep -v '^ *$' "$lines" | tail -n 1 | cut -c 1-150)
  report "$name" "$result${last:+ | $last}"
  ((code == 0)) || echo "$name" >>"$failed"
  return "$code"
}

# test_file SECONDS FILE: the tests of a file. After one that ends the process (tests/gpu/conftest.py), the rest.
test_file() {
  local name begun lines code result=ok ended=0 left deadline last
  name=$(basename "$2" .py)
  begun=$scratch/$name.begun lines=$scratch/$name.output
  deadline=$((SECONDS + $(until_end "$1")))
  while :; do
    left=$((deadline - SECONDS))
    ((left > 5)) || { result="FAILED: out of time" && break; }
    NOISETILT_TESTS_BEGUN=$begun limited "$left" "$PYTHON" -m pytest -q -ra -p no:cacheprovider --tb=short \
      --maxfail=60 --durations=5 "$2" >>"$lines" 2>&1
    code=$?
    ((code == 0 || code == 5)) && break # 5: none is left
    result=FAILED
    tail -n 3 "$lines" | grep -qE ' in [0-9.]+s|No module named pytest' && ((code < 5)) && break
    ((++ended < 30)) || break
    printf '\nThe process ended with code %s in, or after, %s\n' "$code" "$(tail -n 1 "$begun" 2>&1)" >>"$lines"
    cat "$begun.where" >>"$lines" 2>&1
  done
  { printf '\n==== %s: %s\n' "$name" "$result" && tail -c 3000000 "$lines"; } >>"$out/tests.log"
  last=$(grep -E ' in [0-9.]+s' "$lines" | grep -oE '[0-9]+ (passed|failed|skipped|errors?)' |
    awk '{ n[$2] += $1 } END { for (k in n) printf "%d %s ", n[k], k }')
  ((ended == 0)) || result+=", ended $ended processes"
  report "$name" "$result | $last"
  [[ $result == ok ]] || echo "$name" >>"$failed"
}

sanitize() {
  step "compute-sanitizer $1" "$2" sanitizers.log env PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
    "$sanitizer" --tool "$1" --kernel-regex kns=noisetilt --report-api-errors no --print-limit 30 --error-exitcode 9 \
    "$PYTHON" -m bench.gpu.sanitize
}

# ---- environment and build ----

phase_end=200

if [[ -d $WHEELS ]] && ls "$WHEELS"/*.whl >/dev/null 2>&1; then
  step "wheels of $WHEELS" 60 environment.log "$PYTHON" -m pip install --quiet --no-index --no-deps --no-compile \
    --disable-pip-version-check --no-cache-dir --target "$scratch/site" "$WHEELS"/*.whl
fi
step "GPU" 30 environment.log nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm,clocks.mem \
  --format=csv,noheader
timeout 20 nvidia-smi >>"$out/environment.log" 2>&1
sanitizer=$(command -v compute-sanitizer || compgen -G '/usr/local/cuda*/bin/compute-sanitizer' | head -n 1)
for tool in nvcc g++ "$PYTHON" "${sanitizer:-compute-sanitizer}"; do
  { echo "---- $tool" && command -v "$tool" && timeout 20 "$tool" --version; } >>"$out/environment.log" 2>&1
done
step "Python packages" 60 environment.log "$PYTHON" -c '
import importlib.util, sys
from importlib import metadata

there = lambda name: importlib.util.find_spec(name) is not None
needed = ["torch", "numpy", "scipy", "safetensors", "platformdirs", "click", "setuptools", "pytest"]
for name in [*needed, "triton", "fast_hadamard_transform"]:
    print(name, metadata.version(name) if there(name) else "MISSING")
missing = [name for name in needed if not there(name)]
print("Python", sys.version.split()[0], "| missing:", ", ".join(missing) or "nothing")
sys.exit(bool(missing))'
capability=$(timeout 60 "$PYTHON" -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())' 2>/dev/null)
[[ -n $capability ]] || report "a GPU for torch" "FAILED: none; the tests and benchmarks will not run"

if ((quick == 0)) && [[ -n $capability ]]; then
  step "build for $capability" 200 build.log env TORCH_CUDA_ARCH_LIST="$capability" FORCE_CUDA=1 \
    MAX_JOBS="${MAX_JOBS:-$(nproc)}" "$PYTHON" setup.py build_ext --inplace --parallel 2
fi
if [[ -n $capability ]]; then
  step "CUB, to compare with" 90 build.log nvcc -O3 -std=c++17 -shared -Xcompiler -fPIC \
    -gencode="arch=compute_${capability/./},code=sm_${capability/./}" bench/gpu/radix_sort.cu -o build/radix_sort.so
fi
step "the kernels serve CUDA" 60 build.log "$PYTHON" -c '
import sys, torch, noisetilt_kernels as nt
from noisetilt_kernels import doctor
print(doctor.render(doctor.examine()))
status = nt.backends()["cuda"]
print(status.backend, status.detail, *status.refused.values())
sys.exit(not torch.cuda.is_available() or status.backend != "native")'
served=$?

# ---- tests and sanitizers, side by side ----

phase_end=350
if [[ -z $capability ]]; then
  report "tests, sanitizers, benchmarks" "FAILED: there is no GPU"
  echo "no GPU" >>"$failed"
else
  export OMP_NUM_THREADS=4
  for file in tests/gpu/test_gpu_*.py; do
    [[ $file == *large* ]] || test_file 200 "$file" &
  done
  if ((quick == 0)); then
    if [[ -n $sanitizer ]]; then
      for tool in memcheck racecheck synccheck; do sanitize "$tool" 200 & done
    else
      report "compute-sanitizer" "not there"
    fi
    # fills the compiler's cache, so that the measurement below need not wait for it
    step "torch.compile, ahead" 200 build.log "$PYTHON" -m bench.gpu --group whiten_compiled &
  fi
  wait
  phase_end=390
  test_file 60 tests/gpu/test_gpu_large.py
  unset OMP_NUM_THREADS

  # ---- benchmarks, alone ----

  ((served == 0)) || report "benchmarks" "of the reference: the kernels do not serve"
  phase_end=520
  left=$(until_end $((quick ? 150 : 400)))
  step "benchmarks" "$left" benchmarks.log "$PYTHON" -m bench.gpu --seconds $((left - 15)) --copy "$out"
  [[ ! -f $out/tables.md ]] || { printf '\n' && cat "$out/tables.md"; }
fi
printf '\nIn %d s, logs in %s:\n' "$SECONDS" "$out"
cat "$out/summary.txt"
[[ ! -e $failed ]]
