#!/usr/bin/env bash
# A virtual environment for each peer that race.py measures, under build/peers. Does nothing where one is complete; a peer
# that cannot be installed is left out with a message.
set -uo pipefail
cd "$(dirname "$0")/.."

torch=torch==2.13.0
declare -A packages=(
  [quanto_0_2_7]="optimum-quanto==0.2.7"
  [torchao]="torchao==0.18.0"
  [bitsandbytes]="bitsandbytes==0.50.2"
)

for peer in "${!packages[@]}"; do
  home=build/peers/$peer
  if [ "$(cat "$home/installed" 2>/dev/null)" = "$torch ${packages[$peer]}" ]; then continue; fi
  echo "peers: installing ${packages[$peer]} into $home"
  rm -rf "$home"
  # torch comes first and alone: with it in place nothing that depends on it asks for another build.
  if python3 -m venv "$home" && "$home/bin/pip" install --quiet "$torch" setuptools numpy==2.4.6 &&
    "$home/bin/pip" install --quiet "${packages[$peer]}"; then
    echo "$torch ${packages[$peer]}" >"$home/installed"
  else
    echo "peers: ${packages[$peer]} cannot be installed here; race.py leaves it out" >&2
    rm -rf "$home"
  fi
done
