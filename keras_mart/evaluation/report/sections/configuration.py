"""The flags and versions of each run."""

from keras_mart.evaluation.report import formatting
from keras_mart.evaluation.report.markup import tag
from keras_mart.evaluation.report.sections import frame

LEAD = "The flags in each run's flags.cfg; all others have their default values. "
MARKED = "Flags that not all runs share are highlighted."


def configuration(subjects):
    """Returns the section with a card per run."""
    shared = set.intersection(*(set(subject.flags) for subject in subjects))
    lead = LEAD + (MARKED if len(subjects) > 1 else "")
    absent = [frame.missing(each, "The versions", "evaluate") for each in subjects if not _versions(each)]
    shown = frame.cards(subjects, lambda subject: _flags(subject, shared))
    return frame.section("configuration", "Configuration", lead, shown, absent)


def _versions(subject):
    return subject.record.get("versions")


def _flags(subject, shared):
    lines = [[line if line in shared else tag("mark", line), "\n"] for line in subject.flags]
    seed = subject.record.get("seed")
    facts = [
        f"{formatting.threat(*subject.threat)}" if subject.threat else None,
        f"seed {seed}" if seed is not None else None,
        *(f"{name} {version}" for name, version in (_versions(subject) or {}).items()),
    ]
    evaluated = "Evaluated with: " + "; ".join(filter(None, facts)) + "." if any(facts) else None
    return [tag("pre", lines), tag("p", evaluated, class_="footnote")]
