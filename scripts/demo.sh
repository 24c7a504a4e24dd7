#!/usr/bin/env bash
# From a fresh machine to bits/dim on real images: installs fastlik in .venv, trains a score network on
# scikit-learn's handwritten digits, evaluates the likelihood of the held-out ones, and draws the run.
# All of it is in runs/demo afterwards.  A second run finds what is done and goes on from there.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup_env.sh all
fastlik=.venv/bin/fastlik
run=runs/demo
# idle OpenMP threads sleep instead of spinning, which on a busy machine takes up to ten times longer
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}"

echo "1/3  training on 1500 images of 8 x 8 pixels with 17 grey levels" >&2
$fastlik train digits --steps 2000 --out $run

if ! [ $run/nll.txt -nt $run/model.safetensors ]; then
    echo "2/3  likelihood of the 297 held-out images" >&2
    $fastlik nll $run digits --split test --dequantize uniform --probes 2 --set chunk=50 \
        --out $run/nll.json >$run/nll.tmp
    echo "3/3  figures" >&2
    $fastlik plot $run
    mv $run/nll.tmp $run/nll.txt
fi
cat $run/nll.txt
