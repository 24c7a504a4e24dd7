#!/usr/bin/env bash
# Lint and test, in an environment that is made if it is not there.  Arguments go to pytest:
#     bash scripts/test.sh -k rk_step
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# tests of the native module must not pass by its absence
FASTLIK_REQUIRE_NATIVE="${FASTLIK_REQUIRE_NATIVE:-1}" bash "$here/setup_env.sh" all,test
cd "$here/.."
.venv/bin/python -m ruff check .
exec .venv/bin/python -m pytest "$@"
