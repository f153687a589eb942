"""The public interface: every name is documented and has type hints."""

import functools
import importlib
import inspect

import pytest

MODULES = (
    "keras_mart",
    *(f"keras_mart.{name}" for name in "attacks datasets evaluation methods networks plot threats zoo".split()),
    *(f"keras_mart.{name}" for name in "distribution folding layers losses optimizers serving".split()),
)


def public_names():
    """Returns {full name: object} of the public functions and classes."""
    found = {}
    for module in map(importlib.import_module, MODULES):
        for name in module.__all__:
            thing = getattr(module, name)
            if callable(thing) and thing.__module__.startswith("keras_mart"):
                found[f"{thing.__module__}.{thing.__qualname__}"] = thing
    return found


PUBLIC = public_names()


def functions_of(thing):
    """Returns {name: function} of a function, or of a class's own and inherited public methods in this package."""
    if not inspect.isclass(thing):
        return {thing.__qualname__: thing}
    own = [each for each in reversed(thing.__mro__) if each.__module__.startswith("keras_mart")]
    members = {name: member for each in own for name, member in vars(each).items()}
    functions = {}
    for name, member in members.items():
        member = member.fget if isinstance(member, property) else member
        member = member.func if isinstance(member, functools.cached_property) else member
        member = getattr(member, "__func__", member)  # of class and static methods
        if inspect.isfunction(member) and member.__module__.startswith("keras_mart"):
            if name == "__init__" or not name.startswith("_"):
                functions[member.__qualname__] = member
    return functions


def missing_hints(function):
    """Returns the parameters of a function, and "return", that have no annotation."""
    signature = inspect.signature(function)
    without = [name for name, each in signature.parameters.items() if each.annotation is each.empty]
    without = [name for name in without if name not in ("self", "cls")]
    if signature.return_annotation is signature.empty and function.__name__ != "__init__":
        without.append("return")
    return without


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_hints(name):
    missing = {each: missing_hints(function) for each, function in functions_of(PUBLIC[name]).items()}
    assert not {each: names for each, names in missing.items() if names}


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_documented(name):
    assert inspect.getdoc(PUBLIC[name])
