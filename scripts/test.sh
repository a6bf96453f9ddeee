#!/usr/bin/env bash
# Runs the C++ tests and the Python tests, both even if the first fail, and closes with their summary lines.
set -uo pipefail
cd "$(dirname "$0")/.."
logs=build/logs
mkdir -p "$logs"

.venv/bin/ctest --test-dir build/dev --output-on-failure 2>&1 | tee "$logs/ctest.log"
cpp=${PIPESTATUS[0]}
.venv/bin/python -m pytest 2>&1 | tee "$logs/pytest.log"
python=${PIPESTATUS[0]}

echo
echo "C++ tests:"
grep -E 'tests passed|tests failed|No tests were found' "$logs/ctest.log"
echo "Python tests:"
tail -n 1 "$logs/pytest.log"
[ "$cpp" -eq 0 ] && [ "$python" -eq 0 ]
