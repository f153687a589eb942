"""Whether runs were judged alike: only then do their figures compare."""

from keras_mart.evaluation.report import words
from keras_mart.evaluation.report.markup import tag


def notes(subjects):
    """A warning that lists in what the runs were judged differently; nothing where they were judged alike."""
    found = [tag("li", f"{what} is {values}.") for what, values in _differences(subjects)]
    changed = [name for name in _names(subjects) if _changed(name, subjects)]
    if changed:
        found.append(tag("li", f"The parameters of {words.listing(changed)} are not the same for all."))
    heading = tag("b", "These runs were not judged alike, and their figures do not compare as they stand.")
    return tag("div", tag("p", heading), tag("ul", found), class_="note") if found else None


def parameters(subject):
    """Name to the parameters, as text, of the attacks that a run was judged under, and of their stages."""
    return {
        name: said if isinstance(said, str) else words.parameters(said, subject.threat)
        for name, said in subject.parameters.items()
    }


def _differences(subjects):
    respects = {
        "The norm": lambda each: each.threat and words.NORMS.get(each.threat[0], each.threat[0]),
        "Epsilon": lambda each: each.threat and words.epsilon(each.threat[1]),
        "The dataset": lambda each: each.evaluation.get("dataset"),
        "The seed that chose the test examples": lambda each: words.text(each.evaluation.get("sample")),
        "The source of transfer attacks": lambda each: each.evaluation.get("source"),
        "The precision": lambda each: each.record.get("precision"),
        "The number of test examples": lambda each: each.examples and f"{each.examples:,}",
        "The list of attacks": lambda each: words.listing(each.attacks),
    }
    for what, value in respects.items():
        titles = words.grouped((each.title, value(each)) for each in subjects)
        if len(titles) > 1:
            yield what, "; ".join(f"{each} for {runs}" for each, runs in titles.items())


def _names(subjects):
    return dict.fromkeys(name for subject in subjects for name in parameters(subject))


def _changed(name, subjects):
    """Whether an attack has other parameters here than there, its ball aside, which is told already."""
    texts = {}
    for each in subjects:
        if name in each.parameters:
            # The repr in an older file does not compare with the text of a dictionary.
            texts.setdefault(type(each.parameters[name]), set()).add(_without_ball(parameters(each)[name]))
    return any(len(found) > 1 for found in texts.values())


def _without_ball(attack):
    start, _, rest = attack.partition("threat=")
    return start, rest.partition(")")[2]
