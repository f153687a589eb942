"""Numbers and names as the report writes them."""

import shlex

# From here on single units are noise.
MILLIONS = 10_000_000
NORMS = {"Linf": "L∞", "L2": "L2"}
NAMES = {"natural": "natural", "worst_case": "worst case"}


def text(value):
    """The value as text; `None` stays."""
    return None if value is None else str(value)


def percent(share, digits=2):
    """84.25% for 0.8425."""
    return f"{share:.{digits}%}"


def interval(bounds):
    """80.4% to 87.5%."""
    low, high = bounds
    return f"{percent(low, 1)} to {percent(high, 1)}"


def in_255ths(value):
    """Whether a size is a multiple of 1/255 that has no short decimal: 8/255, but not 0.2."""
    return abs(value * 255 - round(value * 255)) < 1e-4 and abs(value - round(value, 3)) > 1e-6


def epsilon(value):
    """8/255 or 0.15."""
    return f"{round(value * 255)}/255" if in_255ths(value) else f"{value:.4g}"


def threat(norm, size):
    """L∞, epsilon 8/255."""
    return f"{NORMS.get(norm, norm)}, epsilon {epsilon(size)}"


def attack(name):
    """An attack's name in a table: a stage without what it is a stage of."""
    return NAMES.get(name, name.rpartition("/")[2])


def parameters(said, told=None):
    """PGD: steps 20, start uniform; of an attack's dictionary, without its stages and the `told` (norm, epsilon)."""
    given = {name: value for name, value in said.items() if name not in ("class", "stages")}
    if told and given.get("threat") == dict(zip(("norm", "epsilon"), told, strict=True)):
        del given["threat"]
    texts = [f"{name} {_parameter(value, told)}" for name, value in given.items()]
    return ": ".join(filter(None, [said.get("class"), ", ".join(texts)]))


def _parameter(value, told):
    if isinstance(value, dict):
        return f"({parameters(value, told)})"
    return epsilon(value) if isinstance(value, float) else str(value)


def listing(names):
    """a, b and c."""
    names = list(map(str, names))
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def count(number):
    """16,000 or 23 million."""
    return f"{number / 1e6:,.0f} million" if number >= MILLIONS else f"{number:,}"


def grouped(pairs):
    """Value to the titles that go with it, of (title, value) pairs; without those that have none."""
    titles = {}
    for title, value in pairs:
        if value:
            titles.setdefault(value, []).append(title)
    return {value: listing(each) for value, each in titles.items()}


def command(path, mode, *flags):
    """What to type to have a run measured."""
    return shlex.join(["python", "-m", "keras_mart.main", f"--mode={mode}", f"--workdir={path}", *flags])
