"""Parsers of flag values. An empty value resets an optional flag to `None`, such as one set in a flagfile."""

import fractions
import os
import re
from typing import NamedTuple

from absl import flags

from keras_mart import checks, networks

APPLICATIONS, TORCH, FILES = "applications:", "torch:", (".keras", ".h5", ".hdf5")
LARGEST = 2**31 - 1  # the largest int32, the type of seeds and counters


def absolute(path):
    """Returns the absolute path of a file; a "torch:" prefix is kept."""
    kind = TORCH if path.startswith(TORCH) else ""
    return kind + os.path.abspath(os.path.expanduser(path.removeprefix(kind)))


class Value(flags.ArgumentParser):
    """Base class: reads one value; an optional flag may be empty, which gives `None`."""

    def __init__(self, optional=False):
        super().__init__()
        self.optional = optional

    def parse(self, argument):
        return None if self.optional and argument == "" else self.read(argument)


class Number(Value):
    """Reads a number such as 0.031 or a fraction such as 8/255."""

    def read(self, argument):
        try:
            return float(fractions.Fraction(str(argument).replace(" ", "")))
        except (ValueError, ArithmeticError) as error:
            raise ValueError(f"must be a number or a fraction such as 8/255. Received: {argument!r}") from error


class Integer(Value):
    """Reads an integer in [least, LARGEST]."""

    def __init__(self, least=1, optional=False):
        super().__init__(optional)
        self.least = least

    def read(self, argument):
        try:
            value = int(argument)
        except ValueError:
            value = None
        if value is None or value < self.least:
            raise ValueError(f"must be an integer of at least {self.least}. Received: {argument!r}")
        if value > LARGEST:
            raise ValueError(f"must be an integer of at most {LARGEST}. Received: {argument!r}")
        return value


class Name(Value):
    """Reads a name, case-insensitively."""

    def read(self, argument):
        return argument.lower()


class Choice(Name):
    """Reads one of the choices."""

    def __init__(self, choices, what, optional=False):
        super().__init__(optional)
        self.choices, self.what = choices, what

    def read(self, argument):
        name = super().read(argument)
        checks.one_of(name, self.choices, self.what)
        return name


class Network(Choice):
    """Reads one of the choices, applications:<name>, or the path of a file, which becomes absolute."""

    def __init__(self, choices):
        super().__init__((*choices, APPLICATIONS + "<name>", "<path>.keras", "<path>.h5"), "network")

    def read(self, argument):
        if argument.startswith(APPLICATIONS):
            checks.one_of(argument.removeprefix(APPLICATIONS), networks.application_names(), "applications:")
            return argument
        if argument.endswith(FILES):
            return absolute(argument)
        return super().read(argument)


class Weights(Value):
    """Reads none, imagenet or a path; the path of a PyTorch file becomes absolute."""

    def read(self, argument):
        return absolute(argument) if argument.startswith(TORCH) else argument


class Preprocessing(Number):
    """Reads a preprocessing that `keras_mart.networks.on_unit_images` supports: its name, or a number."""

    def read(self, argument):
        if argument in networks.PREPROCESSING:
            return argument
        try:
            return super().read(argument)
        except ValueError:
            names = ", ".join(networks.PREPROCESSING)
            raise ValueError(f"must be one of {names}, or a number such as 255. Received: {argument!r}") from None


class Interval(NamedTuple):
    """A number of "steps" or "epochs"."""

    number: int
    unit: str

    def __str__(self):
        return f"{self.number}{self.unit}"


class Every(Value):
    """Reads 100, 100steps and 2epochs as an `Interval`."""

    def read(self, argument):
        form = re.fullmatch(r"(\d*)\s*(step|epoch|)s?", str(argument).strip())
        if not form or not (form[1] or form[2]) or not 0 < int(form[1] or 1) <= LARGEST:
            raise ValueError(f"must be a number of steps or epochs: 100steps, 2epochs. Received: {argument!r}")
        return Interval(int(form[1] or 1), f"{form[2] or 'step'}s")


class List(flags.ListParser):
    """Reads a comma-separated list, each item with the given parser."""

    def __init__(self, item, least=0):
        super().__init__()
        self.item, self.least = item, least

    def parse(self, argument):
        values = list(dict.fromkeys(map(self.item.parse, super().parse(argument))))
        if len(values) < self.least:
            raise ValueError(f"must be a comma-separated list of {self.least} or more values. Received: {argument!r}")
        return values
