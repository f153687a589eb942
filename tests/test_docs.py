"""The documentation site: every public name has an entry in the API reference."""

import importlib
import pathlib
import re

import pytest
from test_public import MODULES, PUBLIC

PAGES = pathlib.Path(__file__).parents[1] / "docs" / "api"


def documented(folder=PAGES):
    """Returns the names that have an entry, a line `::: <name>`."""
    pages = "\n".join(page.read_text() for page in sorted(folder.glob("*.md")))
    return re.findall(r"^::: (\S+)$", pages, flags=re.MULTILINE)


def names_of(thing):
    """Returns the names under which users import a thing."""
    modules = map(importlib.import_module, MODULES)
    return {f"{each.__name__}.{name}" for each in modules for name in each.__all__ if getattr(each, name) is thing}


def without_entry(folder=PAGES):
    """Returns the public names that have no entry under any name."""
    entries = set(documented(folder))
    return [name for name, thing in PUBLIC.items() if not entries & {name, *names_of(thing)}]


def test_every_public_name_has_one_entry():
    assert len(PUBLIC) > 100 and not without_entry()
    assert len(documented()) == len(set(documented()))


@pytest.mark.parametrize("name", ["keras_mart.MART", "keras_mart.datasets.load", "keras_mart.losses.mart"])
def test_a_missing_entry_is_found(tmp_path, name):
    for page in PAGES.glob("*.md"):
        (tmp_path / page.name).write_text(page.read_text().replace(f"::: {name}\n", ""))
    assert [found.rpartition(".")[2] for found in without_entry(tmp_path)] == [name.rpartition(".")[2]]
