"""The differences between the evaluations of several runs, which make their accuracies incomparable."""

from keras_mart.evaluation.report import formatting
from keras_mart.evaluation.report.markup import tag


def notes(subjects):
    """Returns a warning that lists the differences between the runs' evaluations, `None` if there are none."""
    found = [tag("li", f"{what} is {values}.") for what, values in _differences(subjects)]
    changed = [name for name in _names(subjects) if _changed(name, subjects)]
    if changed:
        found.append(tag("li", f"The parameters of {formatting.listing(changed)} are not the same for all runs."))
    heading = tag("b", "These runs were not evaluated in the same way; their accuracies cannot be compared directly.")
    return tag("div", tag("p", heading), tag("ul", found), class_="note") if found else None


def parameters(subject):
    """Returns the parameters of a run's attacks and their stages as text, by name."""
    return {
        name: each if isinstance(each, str) else formatting.parameters(each, subject.threat)
        for name, each in subject.parameters.items()
    }


def _differences(subjects):
    properties = {
        "The norm": lambda each: each.threat and formatting.NORMS.get(each.threat[0], each.threat[0]),
        "Epsilon": lambda each: each.threat and formatting.epsilon(each.threat[1]),
        "The dataset": lambda each: each.evaluation.get("dataset"),
        "The seed that chose the test examples": lambda each: formatting.text(each.evaluation.get("sample")),
        "The source of transfer attacks": lambda each: each.evaluation.get("source"),
        "The precision": lambda each: each.record.get("precision"),
        "The number of test examples": lambda each: each.examples and f"{each.examples:,}",
        "The list of attacks": lambda each: formatting.listing(each.attacks),
    }
    for what, value in properties.items():
        titles = formatting.grouped((each.title, value(each)) for each in subjects)
        if len(titles) > 1:
            yield what, "; ".join(f"{each} for {runs}" for each, runs in titles.items())


def _names(subjects):
    return dict.fromkeys(name for subject in subjects for name in parameters(subject))


def _changed(name, subjects):
    """Returns whether an attack's parameters differ between runs, apart from the ball, which is compared above."""
    texts = {}
    for each in subjects:
        if name in each.parameters:
            # Only texts of the same form are compared: older files have an attack's repr.
            texts.setdefault(type(each.parameters[name]), set()).add(_without_ball(parameters(each)[name]))
    return any(len(found) > 1 for found in texts.values())


def _without_ball(attack):
    start, _, rest = attack.partition("threat=")
    return start, rest.partition(")")[2]
