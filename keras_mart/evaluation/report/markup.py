"""HTML and SVG elements: text is escaped where it goes in, and only there."""

import html

# Elements without a closing tag.
VOID = ("img", "meta")


class Markup(str):
    """Text that is HTML already. Joining or formatting it gives plain text again, which is escaped."""


def tag(name, /, *children, **attributes):
    """An element.

    Args:
        name: such as "p".
        children: `Markup` stays as it is, lists are gone through, `None` is left out, everything else is escaped.
        attributes: `None` is left out; `class_` stands for class, and "_" for "-" in all names.
    """
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{given}>" if name in VOID else f"<{name}{given}>{join(*children)}</{name}>")


def join(*children):
    """The children of `tag`, one after the other."""
    return Markup("".join(map(_text, children)))


def _text(child):
    if child is None or isinstance(child, Markup):
        return child or ""
    if isinstance(child, (list, tuple)):
        return join(*child)
    return html.escape(str(child))
