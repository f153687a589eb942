PYTHON ?= python3
export TF_CPP_MIN_LOG_LEVEL ?= 2
BIN := .venv/bin

# Where the experiments find their data and write what came out, and how many runs share the cores:
# make reproduce-mnist MNIST=npz:mnist.npz JOBS=2
# and after how many seconds all is saved and the command ends:
# make reproduce-cifar CIFAR10=npz:cifar10.npz SECONDS=540
MNIST ?= tfds:mnist
CIFAR10 ?= tfds:cifar10
JOBS ?= 1
RESULTS ?= runs/results
STUDY := $(BIN)/python -m experiments

.PHONY: quickstart test lint wheel compatibility clean
.PHONY: reproduce reproduce-cifar reproduce-mnist reproduce-figures reproduce-unlabelled reproduce-large

# --resume, so that it can be interrupted and repeated.
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

# The core of the tests with other versions: docs/compatibility.md.
compatibility:
	$(PYTHON) tests/compatibility.py $(VERSIONS)

# The paper's experiments (docs/reproduction.md): each resumes where it was, and does again nothing that is done.
# Two CPU cores are enough for all but reproduce-cifar, which needs a GPU and is no part of them.
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

# requirements.txt pins what pyproject.toml asks for.
.venv/installed: pyproject.toml requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint requirements.txt --editable '.[docs,test]'
	touch $@

clean:
	rm -rf .venv .compatibility build dist *.egg-info
