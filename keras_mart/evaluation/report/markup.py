"""HTML and SVG elements. Text is escaped once, when it is put into an element."""

import html

# Elements without a closing tag.
VOID = ("img", "meta")


class Markup(str):
    """Text that already is HTML. Joining or formatting it returns plain text, which is escaped again."""


def tag(name, /, *children, **attributes):
    """Returns an element.

    Args:
        name: name of the element, such as "p".
        children: its content: `Markup` is inserted unchanged, lists are flattened, `None` is left out, everything else
            is escaped.
        attributes: its attributes: `None` is left out; `class_` stands for class, and "_" for "-" in all names.
    """
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{given}>" if name in VOID else f"<{name}{given}>{join(*children)}</{name}>")


def join(*children):
    """Returns the children of `tag`, concatenated."""
    return Markup("".join(map(_text, children)))


def _text(child):
    if child is None or isinstance(child, Markup):
        return child or ""
    if isinstance(child, (list, tuple)):
        return join(*child)
    return html.escape(str(child))
