#!/usr/bin/env bash
set -euo pipefail
cd "$(dirname "$0")/.."
if [[ ${1:-} == prepare ]]; then
  exec "${PYTHON:-python3}" -m bench.gpu.prepare "${@:2}"
fi
exec "${PYTHON:-python3}" -m bench.gpu.run "$@"
