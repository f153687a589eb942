PYTHON ?= python3
export TF_CPP_MIN_LOG_LEVEL ?= 2
BIN := .venv/bin

.PHONY: quickstart test lint clean

# --resume, so that it can be interrupted and repeated.
quickstart: .venv/installed
	$(BIN)/python -m keras_mart.main --flagfile=configs/digits.cfg --resume

test: .venv/installed
	$(BIN)/python -m pytest

lint: .venv/installed
	$(BIN)/ruff check .

# requirements.txt pins what setup.py asks for.
.venv/installed: setup.py requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint requirements.txt --editable '.[docs,test]'
	touch $@

clean:
	rm -rf .venv build dist *.egg-info
