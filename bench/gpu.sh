#!/usr/bin/env bash
# Build, tests, sanitizers and benchmarks on a new GPU, unattended, limited to nine minutes: for the CUDA library and
# for the Triton backend. At the end the launch table of the Triton backend is tuned.
#
#   bench/gpu.sh                everything
#   bench/gpu.sh --quick        without builds and sanitizers, and with half the time for the benchmarks
#   PARTS=cuda bench/gpu.sh     only the CUDA library
#   PARTS=triton bench/gpu.sh   only the Triton backend, which needs no nvcc
#
# With both parts in one run, the last benchmarks and the tuning may run out of time. If two runs are
# possible, run PARTS=cuda and PARTS=triton one after the other.
#
# Every step has a time limit, and a step that fails does not stop the others. The tables of the benchmarks
# and a line for every step are printed last. The same text, the results files, the new launch_table.json and
# the logs are written to $OUT (default: build/gpu). The exit code is not 0 if a step failed.
#
# Needs torch with CUDA, nvcc of the same CUDA version and g++, and pytest for the tests. Nothing is
# downloaded. Missing Python packages can be provided as wheels in the folder $WHEELS (default: .wheels, which
# git must ignore). For Python 3.12, download the missing packages with
#
#   pip download --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
#     --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 --platform manylinux_2_17_x86_64 \
#     --platform manylinux2014_x86_64 -d .wheels \
#     numpy==2.4.6 scipy==1.17.1 safetensors==0.8.0 platformdirs==4.14.5 click==8.5.1 \
#     pytest==9.2.0 pluggy iniconfig packaging pygments
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
read -ra parts <<<"${PARTS:-cuda triton}"
for part in "${parts[@]}"; do
  [[ $part == cuda || $part == triton ]] ||
    { echo "PARTS=$PARTS: '$part' is neither cuda nor triton" >&2 && exit 2; }
done
rm -f "$out"/{environment,build,sanitizers}.log "$out"/{tests,benchmarks}-{cuda,triton}.log "$out"/tune.log
rm -f "$out"/{summary.txt,tables.md,results.json,results-triton.json,launch_table.json}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export PYTHONPATH=$scratch/site${PYTHONPATH:+:$PYTHONPATH}
export XDG_CACHE_HOME=$scratch/cache # tables and compiled kernels of this run only
export TORCHINDUCTOR_CACHE_DIR=$scratch/inductor TRITON_CACHE_DIR=$scratch/triton
failed=$scratch/failed

# wanted PART: succeeds if PARTS names it
wanted() {
  [[ " ${parts[*]} " == *" $1 "* ]]
}

# report NAME RESULT: adds a line to the summary
report() {
  printf '%4ds  %-34s %s\n' "$SECONDS" "$1" "$2" | tee -a "$out/summary.txt"
}

# limited SECONDS COMMAND...: like timeout, but also returns if SIGKILL does not end the process, which
# happens if a kernel hangs. Returns 124 after the time limit.
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

# until_end SECONDS: prints SECONDS, or fewer if the phase ends sooner
until_end() {
  local left=$((phase_end - SECONDS))
  echo $(($1 < left ? $1 : left > 1 ? left : 1))
}

# step NAME SECONDS LOG COMMAND...: runs a command; its output goes to a log, its result to the summary
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

# test_file BACKEND SECONDS FILE [SHARE]: runs the tests of a file, or a share of them, such as 2/3. If a test
# ends the process (see tests/gpu/conftest.py), another process runs the remaining tests.
test_file() {
  local backend=$1 name begun lines code result=ok ended=0 left deadline last
  name="$backend: $(basename "$3" .py)${4:+, $4}"
  begun=$scratch/${name//[^a-z0-9_]/-}.begun lines=${begun%.begun}.output
  deadline=$((SECONDS + $(until_end "$2")))
  while :; do
    left=$((deadline - SECONDS))
    ((left > 5)) || { result="FAILED: out of time" && break; }
    NOISETILT_BACKEND=$backend NOISETILT_TESTS_BEGUN=$begun NOISETILT_TESTS_SHARE=${4:-1/1} \
      limited "$left" "$PYTHON" -m pytest -q -ra -p no:cacheprovider --tb=short --maxfail=60 --durations=5 \
      "$3" >>"$lines" 2>&1
    code=$?
    ((code == 0 || code == 5)) && break # 5: no test is left
    result=FAILED
    tail -n 3 "$lines" | grep -qE ' in [0-9.]+s|No module named pytest' && ((code < 5)) && break
    ((++ended < 30)) || break
    printf '\nThe process ended with code %s in, or after, %s\n' "$code" "$(tail -n 1 "$begun" 2>&1)" \
      >>"$lines"
    cat "$begun.where" >>"$lines" 2>&1
  done
  { printf '\n==== %s: %s\n' "$name" "$result" && tail -c 3000000 "$lines"; } >>"$out/tests-$backend.log"
  last=$(grep -E ' in [0-9.]+s' "$lines" | grep -oE '[0-9]+ (passed|failed|skipped|errors?)' |
    awk '{ n[$2] += $1 } END { for (k in n) printf "%d %s ", n[k], k }')
  ((ended == 0)) || result+=", ended $ended processes"
  report "$name" "$result | $last"
  [[ $result == ok ]] || echo "$name" >>"$failed"
}

# test_files BACKEND SECONDS: runs the tests of all files except test_gpu_large.py, in parallel. Slow files
# are divided into shares: Triton compiles, and the reference takes long to compute the expected results.
test_files() {
  local file share shares
  for file in tests/gpu/test_gpu_*.py; do
    case $1:$file in
      *large*) continue ;;
      *whiten* | triton:*bits*) shares=3 ;;
      triton:*runtime*) shares=2 ;;
      *) shares=1 ;;
    esac
    for ((share = 1; share <= shares; share++)); do
      test_file "$1" "$2" "$file" "$share/$shares" &
    done
  done
  wait
}

# benchmarks BACKEND SECONDS: runs the benchmarks
benchmarks() {
  local left
  left=$(until_end "$2")
  step "$1: benchmarks" "$left" "benchmarks-$1.log" env NOISETILT_BACKEND="$1" "$PYTHON" -m bench.gpu \
    --seconds $((left > 15 ? left - 15 : 1)) --copy "$out"
}

# sanitize BACKEND TOOL SECONDS PART: runs compute-sanitizer on the kernels with PART in their names
sanitize() {
  step "$1: compute-sanitizer $2" "$3" sanitizers.log \
    env NOISETILT_BACKEND="$1" PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
    "$sanitizer" --tool "$2" --kernel-regex "kns=$4" --report-api-errors no --print-limit 30 \
    --error-exitcode 9 "$PYTHON" -m bench.gpu.sanitize
}

# ---- environment ----

phase_end=60

if [[ -d $WHEELS ]] && ls "$WHEELS"/*.whl >/dev/null 2>&1; then
  step "wheels of $WHEELS" 60 environment.log \
    "$PYTHON" -m pip install --quiet --no-index --no-deps --no-compile \
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

def version(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:  # its distribution has another name
        return "found"

needed = "torch triton numpy scipy safetensors platformdirs click setuptools pytest".split()
for name in [*needed, "fast_hadamard_transform"]:
    print(name, version(name) if there(name) else "MISSING")
missing = [name for name in needed if not there(name)]
print("Python", sys.version.split()[0], "| missing:", ", ".join(missing) or "nothing")
sys.exit(bool(missing))'
capability=$(timeout 60 "$PYTHON" -c \
  'import torch; print("%d.%d" % torch.cuda.get_device_capability())' 2>/dev/null)
if [[ -z $capability ]]; then
  report "a GPU for torch" "FAILED: torch finds no GPU; nothing was tested or measured"
  printf '\nIn %d s, logs in %s:\n' "$SECONDS" "$out"
  cat "$out/summary.txt"
  exit 1
fi

# ---- builds; the Triton backend needs none, so its tests begin beside the build of the CUDA library ----

export OMP_NUM_THREADS=4
build=("$PYTHON" setup.py build_ext --inplace --parallel 2)
phase_end=110
# The CPU kernels compute the expected results of W. The reference would be slow.
((quick)) || step "build for the CPU" 80 build.log env FORCE_CUDA=0 "${build[@]}"

if wanted triton; then
  { # large samples first, while the memory of the GPU is free
    phase_end=340
    test_file triton 60 tests/gpu/test_gpu_large.py
    test_files triton 260
  } &
fi
if wanted cuda; then
  phase_end=210
  ((quick)) || step "cuda: build for $capability" 180 build.log \
    env TORCH_CUDA_ARCH_LIST="$capability" FORCE_CUDA=1 MAX_JOBS="${MAX_JOBS:-$(nproc)}" "${build[@]}"
  step "CUB, for comparison" 60 build.log nvcc -O3 -std=c++17 -shared -Xcompiler -fPIC \
    -gencode="arch=compute_${capability/./},code=sm_${capability/./}" \
    bench/gpu/radix_sort.cu -o build/radix_sort.so &
fi
serves() {
  step "$1: serves" 60 build.log env NOISETILT_BACKEND="$1" "$PYTHON" -c '
import sys
import noisetilt_kernels as nt
from noisetilt_kernels.cli import doctor

print(doctor.render(doctor.examine()))
status = nt.backends()["cuda"]
print(status.backend, status.detail, *status.refused.values())
sys.exit(status.backend == "none")'
}

# ---- tests of the CUDA library, and sanitizers ----

phase_end=340
((quick)) || [[ -n $sanitizer ]] || report "compute-sanitizer" "not found"
((quick)) && sanitizer=
if wanted cuda && serves cuda; then
  cuda=1
  test_files cuda 200 &
  for tool in memcheck racecheck synccheck; do
    [[ -z $sanitizer ]] || sanitize cuda "$tool" 200 noisetilt &
  done
elif wanted cuda; then
  report "cuda: tests and benchmarks" "FAILED: not run, because the CUDA backend does not serve"
fi
[[ -z $sanitizer ]] || ! wanted triton || sanitize triton memcheck 200 _kernel &
# fills the compiler's cache for the measurement below
((quick)) || step "torch.compile, ahead" 200 build.log "$PYTHON" -m bench.gpu --group whiten_compiled &
wait
phase_end=370
[[ -z ${cuda:-} ]] || test_file cuda 60 tests/gpu/test_gpu_large.py
unset OMP_NUM_THREADS

# ---- benchmarks and tuning, alone ----

phase_end=545
left=$((phase_end - SECONDS))
# Percentage of the time left for the benchmarks of cuda and of triton; the rest is for the tuning.
case "${cuda:-0} $(wanted triton && echo 1)" in
  "1 1") shares=(45 33) ;;
  "1 ") shares=(100 0) ;;
  *) shares=(0 60) ;;
esac
((quick)) && left=$((left / 2))
[[ -z ${cuda:-} ]] || benchmarks cuda $((left * shares[0] / 100))
if wanted triton && serves triton; then
  benchmarks triton $((left * shares[1] / 100))
  left=$(until_end 180)
  if ((left > 30)); then
    step "triton: tuning" "$left" tune.log env NOISETILT_BACKEND=triton "$PYTHON" -m bench.gpu.tune \
      --seconds $((left - 15)) --output "$out/launch_table.json"
  else
    report "triton: tuning" "not run: only $left s are left"
  fi
fi

results=()
for file in "$out"/results{,-triton}.json; do [[ ! -f $file ]] || results+=("$file"); done
if ((${#results[@]})); then
  printf '\n'
  timeout 20 "$PYTHON" -m bench.report "${results[@]}" 2>&1 | tee "$out/tables.md"
fi
printf '\nIn %d s, logs in %s:\n' "$SECONDS" "$out"
cat "$out/summary.txt"
[[ ! -e $failed ]]
