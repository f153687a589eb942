"""A Griffe extension for the API reference: keeps "<name>" in docstrings from being read as HTML."""

import re

import griffe

CODE_OR_ANGLE = re.compile(r"(`+.+?`+)|<(?=[A-Za-z/])", re.DOTALL)


class Angles(griffe.Extension):
    def on_object(self, *, obj, **kwargs):
        if obj.docstring:
            obj.docstring.value = CODE_OR_ANGLE.sub(lambda found: found[1] or "&lt;", obj.docstring.value)
