"""Formats numbers and names for the report."""

import shlex

# Counts from here on are given in millions.
MILLIONS = 10_000_000
NORMS = {"Linf": "L∞", "L2": "L2"}
NAMES = {"natural": "natural", "worst_case": "worst case"}


def text(value):
    """Returns a value as text, `None` unchanged."""
    return None if value is None else str(value)


def percent(share, digits=2):
    """Formats a share: 84.25% for 0.8425."""
    return f"{share:.{digits}%}"


def interval(bounds):
    """Formats an interval: 80.4% to 87.5%."""
    low, high = bounds
    return f"{percent(low, 1)} to {percent(high, 1)}"


def in_255ths(value):
    """Returns whether a size is a multiple of 1/255 without a short decimal form: 8/255, but not 0.2."""
    return abs(value * 255 - round(value * 255)) < 1e-4 and abs(value - round(value, 3)) > 1e-6


def epsilon(value):
    """Formats an epsilon: 8/255 or 0.15."""
    return f"{round(value * 255)}/255" if in_255ths(value) else f"{value:.4g}"


def threat(norm, size):
    """Formats a ball: L∞, epsilon 8/255."""
    return f"{NORMS.get(norm, norm)}, epsilon {epsilon(size)}"


def attack(name):
    """Returns the name of an attack or stage in a table: a stage without its attack's name."""
    return NAMES.get(name, name.rpartition("/")[2])


def parameters(attack, known_ball=None):
    """Formats an attack's dictionary without its stages: PGD: steps 20, start uniform.

    The ball is left out if it is the `known_ball`, (norm, epsilon).
    """
    given = {name: value for name, value in attack.items() if name not in ("class", "stages")}
    if known_ball and given.get("threat") == dict(zip(("norm", "epsilon"), known_ball, strict=True)):
        del given["threat"]
    texts = [f"{name} {_parameter(value, known_ball)}" for name, value in given.items()]
    return ": ".join(filter(None, [attack.get("class"), ", ".join(texts)]))


def _parameter(value, known_ball):
    if isinstance(value, dict):
        return f"({parameters(value, known_ball)})"
    return epsilon(value) if isinstance(value, float) else str(value)


def listing(names):
    """Joins names: a, b and c."""
    names = list(map(str, names))
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def count(number):
    """Formats a count: 16,000 or 23 million."""
    return f"{number / 1e6:,.0f} million" if number >= MILLIONS else f"{number:,}"


def grouped(pairs):
    """Groups (title, value) pairs: returns {value: text of the titles that have it}, without empty values."""
    titles = {}
    for title, value in pairs:
        if value:
            titles.setdefault(value, []).append(title)
    return {value: listing(each) for value, each in titles.items()}


def command(path, mode, *flags):
    """Returns the shell command that runs a mode on a run directory."""
    return shlex.join(["python", "-m", "keras_mart.main", f"--mode={mode}", f"--workdir={path}", *flags])
