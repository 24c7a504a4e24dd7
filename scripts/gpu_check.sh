#!/usr/bin/env bash
# Everything that only a GPU can say: builds the native module in place, then runs
#     tests    tests/gpu, and the tests of the Triton kernels on the GPU
#     bench    the Triton kernels against eager PyTorch, torch.compile and the copy bandwidth
#     profile  a whole right-hand side: time, memory, kernels
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
rm -f "$out"/{tests.xml,bench.json,profile.json,kernels.txt,summary.json}
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

part build "$python" setup.py -q build_ext --inplace
for name in $parts; do
    case "$name" in
    tests)
        part tests "$python" -m pytest -q tests/gpu tests/ops/test_{activation,normalisation,attention}.py \
            tests/ops/test_hutchinson.py tests/derivatives/jets/test_kernels.py --junitxml="$out/tests.xml"
        ;;
    bench)
        part bench "$python" -m pytest -q benchmarks/bench_triton.py --benchmark-json="$out/bench.json"
        ;;
    profile)
        part profile "$python" -m benchmarks.gpu_profile "$out"
        ;;
    esac
done
"$python" -m benchmarks.gpu_report "$out" || status=1
exit $status
