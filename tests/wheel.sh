#!/usr/bin/env bash
# Builds the wheel, installs it in an empty environment, and trains, evaluates and reports there without the checkout.
set -euo pipefail
cd "$(dirname "$0")/.."
unset PYTHONPATH
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

rm -rf build  # setuptools would include files left by an earlier build
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" wheel --quiet --disable-pip-version-check --no-deps --wheel-dir "$folder" .
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --constraint requirements.txt "$folder"/*.whl

cd "$folder"
venv/bin/python -c "
import pathlib, keras_mart
assert pathlib.Path(keras_mart.__file__).is_relative_to('$folder/venv'), keras_mart.__file__"
venv/bin/python -m keras_mart.main --mode=train --method=mart --dataset=digits --network=wide_resnet --depth=10 --width=1 \
    --steps=2 --epochs=1 --workdir=run
venv/bin/keras-mart --mode=evaluate,report --workdir=run --attacks=pgd2 --examples=40 --checked_examples=10
test -s run/evaluation.json
test -s run/report.html
echo "The wheel works: $(basename ./*.whl)"
