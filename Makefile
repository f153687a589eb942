PYTHON ?= python3
export TF_CPP_MIN_LOG_LEVEL ?= 2
BIN := .venv/bin

# The experiments' data, folder of results, and number of simultaneous runs, which share the cores:
# make reproduce-mnist MNIST=npz:mnist.npz JOBS=2
# SECONDS saves and stops after that time; the same command resumes:
# make reproduce-cifar CIFAR10=npz:cifar10.npz SECONDS=540
MNIST ?= tfds:mnist
CIFAR10 ?= tfds:cifar10
JOBS ?= 1
RESULTS ?= runs/results
STUDY := $(BIN)/python -m experiments

.PHONY: quickstart test lint wheel docs compatibility clean
.PHONY: reproduce reproduce-cifar reproduce-mnist reproduce-figures reproduce-unlabelled reproduce-large

# --resume, so that the target can be interrupted and repeated.
quickstart: .venv/installed
	$(BIN)/python -m keras_mart.main --flagfile=configs/digits.cfg --resume

test: .venv/installed
	$(BIN)/python -m pytest -n auto --maxprocesses=4 --dist=worksteal

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The package as users install it, without the checkout.
wheel:
	PYTHON=$(PYTHON) tests/wheel.sh

# The documentation site, build/docs/index.html: a broken link or anchor fails, and no network is needed.
docs: .venv/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

# The core of the tests with other versions: docs/compatibility.md.
compatibility:
	$(PYTHON) tests/compatibility.py $(VERSIONS)

# The paper's experiments (docs/reproduction.md). Each target resumes and skips finished runs.
# Two CPU cores are enough for `reproduce`; reproduce-cifar, which is not part of it, needs a GPU.
reproduce: reproduce-mnist reproduce-figures reproduce-unlabelled reproduce-large

reproduce-cifar: .venv/installed
	$(STUDY).cifar --dataset=$(CIFAR10) --results=$(RESULTS) $(if $(SECONDS),--seconds=$(SECONDS))
	$(STUDY).report --results=$(RESULTS) --docs=$(RESULTS)

reproduce-mnist: .venv/installed
	$(STUDY).whitebox --dataset=$(MNIST) --results=$(RESULTS) --jobs=$(JOBS)
	$(STUDY).start --dataset=$(MNIST) --results=$(RESULTS) --jobs=$(JOBS)
	$(STUDY).blackbox --dataset=$(MNIST) --results=$(RESULTS) --jobs=$(JOBS)
	$(STUDY).report --results=$(RESULTS) --docs=$(RESULTS)

reproduce-figures: .venv/installed
	$(STUDY).figure1 --dataset=$(CIFAR10) --results=$(RESULTS) --jobs=$(JOBS)
	$(STUDY).figure2 --dataset=$(CIFAR10) --results=$(RESULTS) --jobs=$(JOBS)
	$(STUDY).report --results=$(RESULTS) --docs=$(RESULTS)

reproduce-unlabelled: .venv/installed
	$(STUDY).unlabelled --dataset=$(MNIST) --results=$(RESULTS) --jobs=$(JOBS)
	$(STUDY).report --results=$(RESULTS) --docs=$(RESULTS)

reproduce-large: .venv/installed
	$(STUDY).wide_resnet --dataset=$(CIFAR10) --precision=mixed_bfloat16 --results=$(RESULTS)
	$(STUDY).report --results=$(RESULTS) --docs=$(RESULTS)

# requirements.txt pins the versions of pyproject.toml's dependencies.
.venv/installed: pyproject.toml requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint requirements.txt --editable '.[docs,test]'
	touch $@

clean:
	rm -rf .venv .compatibility build dist *.egg-info
