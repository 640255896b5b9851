#!/bin/sh
# Installs a tool in an environment of its own, .tools/NAME (about 3 GB), and runs our tests of it.
#   tests/real_tool.sh axolotl==0.19.0
set -eu
cd "$(dirname "$0")/.."
python="$PWD/.tools/${1%%==*}/bin/python"
${PYTHON:-python3} -m venv ".tools/${1%%==*}"
"$python" -m pip install --quiet --disable-pip-version-check --upgrade pip
"$python" -m pip install --quiet -c constraints.txt "$1" -e . beartype pytest pytest-timeout
# Those of the index are for CUDA: beside a torch for CPUs, whatever imports them fails. LLaMA-Factory
# imports torchaudio, which does without its compiled part.
"$python" -m pip uninstall --quiet --yes torchvision
rm -f ".tools/${1%%==*}"/lib/python3*/site-packages/torchaudio/lib/*.so
# What the tools bring for pytest does not go with every version of it.
PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 "$python" -m pytest -p pytest_timeout -m slow \
    tests/library/integrations/test_real_tools.py
