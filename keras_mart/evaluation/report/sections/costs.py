"""The costs and parameters of the attacks, two parts of the section on attacks."""

from keras_mart.evaluation.report import formatting
from keras_mart.evaluation.report.markup import tag
from keras_mart.evaluation.report.sections import differences, frame


def costs(names, subjects):
    """Returns a table of seconds and gradients, `None` if they were not recorded."""
    names = [name for name in names if any(_seconds(each, name) is not None for each in subjects)]
    rows = [
        (frame.kind(name), [formatting.attack(name), *(_effort(each, name) for each in subjects)]) for name in names
    ]
    table = frame.table("Cost of the attacks", ["attack", *map(frame.title, subjects)], rows)
    return [tag("h3", "Cost of the attacks"), table] if names else None


def parameters(names, subjects):
    """Returns the parameters of each attack; those that differ between runs are labelled with the runs' titles."""
    entries = []
    for name in names:
        attacks = formatting.grouped((each.title, differences.parameters(each).get(name)) for each in subjects)
        several = len(attacks) > 1
        texts = [
            tag("dd", f"{titles}: " if several else None, tag("code", attack)) for attack, titles in attacks.items()
        ]
        entries.append([tag("dt", name), texts] if attacks else None)
    return [tag("h3", "Parameters of the attacks"), tag("dl", entries)] if any(entries) else None


def _seconds(subject, name):
    return subject.checkpoint("best").get("seconds", {}).get(name)


def _effort(subject, name):
    seconds = _seconds(subject, name)
    if seconds is None:
        return frame.NOT_MEASURED
    gradients = subject.checkpoint("best").get("gradients", {}).get(name)
    counted = tag("small", f"{formatting.count(gradients)} gradients") if gradients else None
    return tag("div", tag("span", f"{seconds:,.{0 if seconds >= 1000 else 1}f} s"), counted, class_="inline")
