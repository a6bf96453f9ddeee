#!/usr/bin/env bash
# Format, static analysis, types, and the rules that the layers keep. Stops at the first that fails.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=.venv/bin

mapfile -t cpp < <(git ls-files '*.cpp' '*.h')
mapfile -t public < <(git ls-files 'core/include/*.h')
mapfile -t tidy < <(git ls-files 'core/src/*.cpp' 'cli/*.cpp' | grep -v '/kernels/')

echo "lint: clang-format"
clang-format --dry-run -Werror "${cpp[@]}"

echo "lint: the core includes neither torch nor Python"
if grep -nE '#include *[<"](torch|ATen|c10|Python)' core -r; then
  echo "lint: core must build without torch and Python" >&2
  exit 1
fi

echo "lint: every public header compiles on its own"
for header in "${public[@]}"; do
  echo "#include \"${header#core/include/}\"" | g++ -std=c++20 -fsyntax-only -Wall -Wextra -Werror -Icore/include -x c++ -
done

echo "lint: clang-tidy"
printf '%s\n' "${tidy[@]}" | xargs -P "$(nproc)" -n 2 clang-tidy -p build/dev --quiet 2>/dev/null

echo "lint: ruff"
$bin/ruff check --quiet .
$bin/ruff format --check --quiet .

echo "lint: mypy"
$bin/mypy
