#!/usr/bin/env bash
# Makes .venv beside pyproject.toml and installs fastlik in it, with the extras named:
#     bash scripts/setup_env.sh all,test
# A second run returns at once unless something that the install depends on has changed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

extras="${1:?name the extras, such as all,test}"
python=.venv/bin/python

[ -x "$python" ] || "${PYTHON:-python3}" -m venv .venv

wanted="$extras $(find pyproject.toml setup.py constraints.txt scripts/setup_env.sh csrc -type f |
    LC_ALL=C sort | xargs cat | cksum)"
stamp=".venv/installed-$extras"
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
    exit 0
fi

echo "Installing fastlik[$extras] in .venv; the first time downloads PyTorch ..." >&2
"$python" -m pip install --quiet --upgrade pip
"$python" -m pip install --quiet --constraint constraints.txt --editable ".[$extras]"
case ",$extras," in
*,test,* | *,bench,*)
    # torchode, a peer in the benchmarks, asks for a typeguard that the others cannot live with;
    # it runs with this one; azula asks for torchvision, and runs without
    "$python" -m pip install --quiet --no-deps torchode torchtyping==0.1.5 'typeguard>=4' azula
    ;;
esac
echo "$wanted" >"$stamp"
