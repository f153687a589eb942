"""Private names of Keras and TensorFlow: CONTRIBUTING.md lists the few that are used; Keras has them as expected."""

import ast
import collections
import functools
import importlib
import inspect
import pathlib
import pkgutil
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_mart
from keras_mart.optimizers import applying_summed_gradients

PACKAGE = pathlib.Path(keras_mart.__file__).parent
# Each name, the class that has it, and its parameters.
LISTED = {
    "_maybe_symbolic_build": (keras.Model, ["self", "iterator", "data_batch"]),
    "_flatten_layers": (keras.Layer, ["self", "include_self", "recursive"]),
    "_get_variable_index": (keras.Optimizer, ["self", "variable"]),
    "_all_reduce_sum_gradients": (keras.Optimizer, ["self", "grads_and_vars"]),
    "_distributed_tf_update_step": (keras.Optimizer, ["self", "distribution", "grads_and_vars", "learning_rate"]),
}
# Documented in spite of their underscore: those of named tuples, and `os._exit`.
OF_PYTHON = {"_replace", "_exit"}
INSIDE = r"\bkeras\.src\b|\btensorflow\.python\b|\b__internal__\b"
RULE = "A private name must be avoided, or listed in CONTRIBUTING.md with its reason."


def is_private(name):
    return re.fullmatch(r"_[a-z]\w*", name) is not None


def is_ours(kind):
    return kind.__module__.partition(".")[0] == "keras_mart"


def classes():
    """The classes of the package that derive from others'."""
    modules = pkgutil.walk_packages(keras_mart.__path__, "keras_mart.")
    members = [vars(importlib.import_module(module.name)).values() for module in modules]
    found = {kind for values in members for kind in values if inspect.isclass(kind) and is_ours(kind)}
    return sorted((kind for kind in found if foreign_bases(kind)), key=str)


def foreign_bases(kind):
    """The classes of Keras and TensorFlow that a class derives from."""
    return [base for base in kind.__mro__ if base.__module__.partition(".")[0] in ("keras", "tensorflow")]


def names_in(source):
    """The private names that the source of a class defines, sets, reads or takes as an argument."""
    return set(re.findall(r"(?:\bdef |\bself\.|\bpop\([\"'])(_[a-z]\w*)", source))


@functools.cache
def names_of(kind):
    return names_in(pathlib.Path(inspect.getsourcefile(kind)).read_text())


def names_of_bases(kind):
    return set().union(*map(names_of, foreign_bases(kind)))


def used(tree, own, known):
    """(line, name) of each private name in a file that is another's.

    Args:
        own: the names that the package defines.
        known: those that classes of Keras and TensorFlow have; on anything but `self` they are theirs.
    """
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Attribute):
            on_self = isinstance(node.value, ast.Name) and node.value.id == "self"
            names = [node.attr] if node.attr not in own or (node.attr in known and not on_self) else []
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names = {node.value} & known
        elif isinstance(node, ast.keyword):
            names = {node.arg} & known
        elif isinstance(node, ast.FunctionDef):
            names = {node.name} & LISTED.keys()
        elif isinstance(node, ast.ImportFrom):
            names = [alias.name for alias in node.names]
        yield from ((node.lineno, name) for name in names if is_private(name))


def defined(tree):
    """The names that a file gives to its functions, classes and attributes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


@pytest.fixture(scope="module")
def places():
    """Name to the files and lines with it, of the private names of others that the package uses."""
    trees = {path: ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")}
    own = {name for tree in trees.values() for name in defined(tree)} | OF_PYTHON
    known, found = set().union(*map(names_of_bases, classes())), collections.defaultdict(list)
    for path, tree in trees.items():
        for line, name in used(tree, own, known):
            found[name].append(f"{path.relative_to(PACKAGE)}:{line}")
    return found


def test_only_listed_names_are_used(places):
    unlisted = {name: where for name, where in places.items() if name not in LISTED}
    assert not unlisted, f"{RULE} Found: {unlisted}"
    inside = [path.name for path in PACKAGE.rglob("*.py") if re.search(INSIDE, path.read_text())]
    assert not inside, f"{RULE} Found what lies inside Keras or TensorFlow in {inside}"


def test_no_class_shares_a_name_with_its_bases():
    for kind in classes():
        shared = names_in(inspect.getsource(kind)) & names_of_bases(kind) - LISTED.keys()
        assert not shared, f"{RULE} Keras {keras.__version__} has the names of {kind.__name__}'s: {shared}"


def test_each_is_used_in_the_one_file_that_the_guide_says(places):
    guide = (PACKAGE.parent / "CONTRIBUTING.md").read_text().partition("## Private names of Keras")[2]
    rows = re.findall(r"^\| `(_\w+)` \| `([\w/.]+)` \| \S.*\|$", guide.partition("\n## ")[0], re.MULTILINE)
    files = {name: {each.partition(":")[0] for each in where} for name, where in places.items()}
    assert files == {name: {file} for name, file in rows}
    assert files.keys() == LISTED.keys() and len(files) <= 5


@pytest.mark.parametrize("name", LISTED)
def test_keras_has_it(name):
    kind, parameters = LISTED[name]
    has = f"Keras {keras.__version__} has {kind.__name__}.{name}"
    assert hasattr(kind, name), f"{has} no more: CONTRIBUTING.md says what needs it."
    found = list(inspect.signature(inspect.unwrap(getattr(kind, name))).parameters)
    assert found == parameters, f"{has} with other parameters, {found}: CONTRIBUTING.md says what relies on them."


@pytest.mark.parametrize("method", ["fit", "evaluate"])
def test_keras_builds_through_what_is_overridden(method):
    calls = inspect.unwrap(getattr(keras.Model, method)).__code__.co_names
    assert "_maybe_symbolic_build" in calls, f"Keras {keras.__version__} builds otherwise: see methods/model.py."


def test_keras_updates_through_what_is_replaced(two_replicas):
    with two_replicas.scope():
        variable, optimizer = keras.Variable([1.0]), keras.optimizers.SGD(1.0)
        optimizer.build([variable])
    together = []

    def step():
        with applying_summed_gradients(optimizer, lambda function: together.append(function) or function):
            optimizer.apply([tf.ones(1)], [variable])

    two_replicas.run(step)
    changed = f"Keras {keras.__version__} updates otherwise: see `applying_summed_gradients` in optimizers.py."
    assert together, changed
    np.testing.assert_array_equal(variable.numpy(), [0.0], err_msg=changed)  # -1: the gradients were summed once more
