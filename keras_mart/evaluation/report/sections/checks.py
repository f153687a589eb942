"""The checks for false robustness."""

from keras_mart.evaluation.report import formatting
from keras_mart.evaluation.report.markup import tag
from keras_mart.evaluation.report.sections import frame

LEAD = (
    "Signs that an attack failed although the network is not robust. A flagged check is a reason to investigate; "
    "passing all checks does not prove robustness."
)
ICONS = {"passed": "✓", "flagged": "!", "skipped": "-"}


def checks(subjects):
    """Returns the section with a row per check: its name and meaning, then each run's verdict and figure."""
    measured = [subject for subject in subjects if subject.diagnosis.get("checks")]
    absent = [frame.missing(each, "The checks", "report") for each in subjects if each not in measured]
    found = {subject: {check["name"]: check for check in subject.diagnosis["checks"]} for subject in measured}
    names = dict.fromkeys(name for each in found.values() for name in each)
    shown = [_count(measured), tag("div", [_row(name, found) for name in names], class_="checks")] if measured else None
    return frame.section("checks", "Checks for false robustness", LEAD, shown, absent)


def _count(subjects):
    counts = []
    for subject in subjects:
        verdicts = [check["verdict"] for check in subject.diagnosis["checks"]]
        counts.append(f"{subject.title}: {verdicts.count('flagged')} of {len(verdicts)} flagged")
    examples = formatting.grouped((each.title, each.diagnosis.get("examples")) for each in subjects)
    checked = ", ".join(
        f"{number:,} examples" + (f" of {titles}" if len(examples) > 1 else "") for number, titles in examples.items()
    )
    balls = formatting.grouped((each.title, each.diagnosed and formatting.threat(*each.diagnosed)) for each in subjects)
    where = "; ".join(ball + (f" for {titles}" if len(balls) > 1 else "") for ball, titles in balls.items())
    basis = ", ".join(filter(None, (f"on {checked}" if checked else "", where)))
    return tag("p", "; ".join(counts), f" ({basis})." if basis else ".", class_="footnote")


def _row(name, found):
    verdicts = [tag("li", frame.title(subject), _verdict(each.get(name))) for subject, each in found.items()]
    return tag("article", tag("div", tag("h3", name.replace("_", " ")), _meaning(name, found)), tag("ul", verdicts))


def _meaning(name, found):
    """Returns the meaning of a check; meanings that differ between runs are labelled with the runs' titles."""
    meanings = formatting.grouped((each.title, checks_.get(name, {}).get("meaning")) for each, checks_ in found.items())
    several = len(meanings) > 1
    return [tag("p", tag("b", f"{titles}: ") if several else None, text) for text, titles in meanings.items()]


def _verdict(check):
    if check is None:
        return tag("span", "not run", class_="empty")
    verdict = check["verdict"]
    icon = tag("span", ICONS.get(verdict, "?"), aria_hidden="true")
    badge = tag("span", icon, " ", verdict, class_=f"badge {verdict if verdict in ICONS else 'skipped'}")
    return [badge, tag("small", check.get("figure", ""))]
