#!/usr/bin/env bash
# Everything that only a GPU can say: builds the native module in place, then runs
#     tests    tests/gpu, and the tests of the Triton kernels on the GPU
#     bench    the Triton kernels against eager PyTorch, torch.compile and the copy bandwidth; whole likelihoods of
#              MLPs against torchdiffeq and a compiled, graphed RK4
#     profile  a whole right-hand side: time, memory, kernels; compute-sanitizer and ncu on the kernels of MLPs,
#              where they are installed
# or all three; each takes less than 8 minutes.  A short table comes last, JSON goes to ${OUT:-build/gpu}.
#     bash scripts/gpu_check.sh [tests|bench|profile]
# Needs PyTorch and Triton for CUDA, nvcc, pybind11, ninja, pytest and pytest-benchmark; no network.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

case "${1:-all}" in
all) parts="tests bench profile" ;;
tests | bench | profile) parts="$1" ;;
*)
    echo "gpu_check.sh takes tests, bench, profile or nothing for all three, not '$1'." >&2
    exit 2
    ;;
esac

python="${PYTHON:-python3}"
[ -n "${PYTHON:-}" ] || ! [ -x .venv/bin/python ] || python=.venv/bin/python
if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
    echo "PyTorch ($python) sees no GPU here, and this script measures nothing else." >&2
    exit 3
fi

out="${OUT:-build/gpu}"
mkdir -p "$out"
out="$(cd "$out" && pwd)"
rm -f "$out"/{tests.xml,bench.json,profile.json,kernels.txt,summary.json} \
    "$out"/{memcheck,racecheck,synccheck,ncu}.log
unset TRITON_INTERPRET FASTLIK_BACKEND
limit=470
status=0

part() {
    local name="$1"
    shift
    timeout "$limit" "$@" >"$out/$name.log" 2>&1
    local code=$?
    [ $code -eq 0 ] && return
    status=1
    echo "$name ended with code $code (124: after $limit s); the end of $out/$name.log:" >&2
    tail -n 15 "$out/$name.log" >&2
}

# a part that needs a tool which may not be there
tool_part() {
    if command -v "$2" >/dev/null; then
        limit=60 part "$@"
    else
        echo "$1 was left out: $2 is not installed" | tee "$out/$1.log"
    fi
}

part build "$python" setup.py -q build_ext --inplace
for name in $parts; do
    case "$name" in
    tests)
        part tests "$python" -m pytest -q tests/gpu tests/ops/test_{activation,normalisation,attention}.py \
            tests/ops/test_hutchinson.py tests/derivatives/jets/test_kernels.py --junitxml="$out/tests.xml"
        ;;
    bench)
        part bench "$python" -m pytest -q benchmarks/bench_triton.py benchmarks/bench_mlp_gpu.py \
            --benchmark-json="$out/bench.json"
        ;;
    profile)
        limit=230 part profile "$python" -m benchmarks.gpu_profile "$out"
        for tool in memcheck racecheck synccheck; do
            tool_part "$tool" compute-sanitizer --tool "$tool" --error-exitcode 1 \
                "$python" -m pytest -q tests/gpu/test_mlp_chain.py -k "sanitized"
        done
        tool_part ncu ncu --set full --kernel-name regex:chain_kernel --launch-count 1 \
            "$python" -m benchmarks.bench_mlp_gpu
        ;;
    esac
done
"$python" -m benchmarks.gpu_report "$out" || status=1
exit $status
