"""Runs the core tests with other versions of Python, Keras and TensorFlow: `make compatibility`.

Each combination gets an environment in .compatibility/, with the versions of requirements.txt for all other packages.
Prints the table of docs/compatibility.md. Arguments select combinations as python/keras/tensorflow:
`python tests/compatibility.py 3.11/3.12/2.20`.
"""

import os
import pathlib
import subprocess
import sys
from xml.etree import ElementTree

ROOT = pathlib.Path(__file__).resolve().parents[1]
ENVIRONMENTS = ROOT / ".compatibility"
VERSIONS = [
    f"3.11/{keras}/{tensorflow}" for keras in ("3.12", "3.13", "3.14", "3.15") for tensorflow in ("2.20", "2.21")
]
VERSIONS += ["3.12/3.15/2.21", "3.13/3.15/2.21"]
# The tests of the code that depends most on Keras and TensorFlow: steps, views of networks, states, saving, replicas.
CORE = [
    *(f"tests/test_{name}.py" for name in "averaging checkpoints folding hyperparameter layers".split()),
    *(f"tests/test_{name}.py" for name in "networks optimizers private_names scope serving training_step".split()),
    "tests/test_methods.py::test_fits_evaluates_saves_and_resumes",
    "tests/test_methods.py::test_two_replicas_equal_one_device[mart-False]",
]
NOT_PINNED = ("keras==", "tensorflow==", "mkdocs", "mypy", "ruff")  # what is chosen, and what no test needs
INSTALLED = (
    "import platform, keras, tensorflow as t; print(platform.python_version(), keras.__version__, t.__version__)"
)


def environment(versions):
    """Creates the environment of "python/keras/tensorflow" if it does not exist, and returns its Python."""
    python, keras, tensorflow = versions.split("/")
    folder = ENVIRONMENTS / versions.replace("/", "-")
    if not (folder / "installed").exists():
        pins = (ROOT / "requirements.txt").read_text().split()
        others = [pin for pin in pins if not pin.startswith(NOT_PINNED)]
        pinned = [*others, f"keras=={keras}.*", f"tensorflow=={tensorflow}.*"]
        subprocess.run([f"python{python}", "-m", "venv", "--clear", folder], check=True)
        subprocess.run([folder / "bin" / "pip", "install", "--quiet", *pinned], check=True)
        (folder / "installed").touch()
    return folder / "bin" / "python"


def row(versions):
    """Runs the core with "python/keras/tensorflow" and returns its row of the table: versions, passed, failed, minutes.

    Writes pytest's output to tests.log in the environment's folder.
    """
    python = environment(versions)
    folder = python.parents[1]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "2"}
    found = subprocess.run([python, "-c", INSTALLED], capture_output=True, text=True, check=True, env=variables)
    command = [python, "-m", "pytest", "-n", "auto", "--maxprocesses=4", f"--junitxml={folder}/tests.xml", *CORE]
    (folder / "tests.xml").unlink(missing_ok=True)  # from an earlier run, in case this one is interrupted
    with open(folder / "tests.log", "w") as log:
        subprocess.run(command, cwd=ROOT, env=variables, stdout=log, stderr=subprocess.STDOUT, check=False)
    suite = ElementTree.parse(folder / "tests.xml").find("testsuite")
    ran, skipped, failures, errors = (int(suite.get(each)) for each in ("tests", "skipped", "failures", "errors"))
    failed = failures + errors
    return [*found.stdout.split(), ran - skipped - failed, failed, f"{float(suite.get('time')) / 60:.1f}"]


def main(chosen):
    """Prints a row for each combination, and returns the number of those that failed or could not be installed."""
    print(
        "| Python | Keras | TensorFlow | passed | failed | minutes |\n| --- | --- | --- | --- | --- | --- |", flush=True
    )
    bad = 0
    for versions in chosen or VERSIONS:
        try:
            cells = row(versions)
        except (OSError, subprocess.CalledProcessError) as error:
            print(error, file=sys.stderr)
            cells = [*versions.split("/"), "-", "-", "-"]
        bad += cells[4] != 0
        print(f"| {' | '.join(map(str, cells))} |", flush=True)
    return bad


if __name__ == "__main__":
    sys.exit(bool(main(sys.argv[1:])))
