"""The report's tables: results in, Markdown out. Cells are made in cells.py."""

import math
import statistics

from benchmarks import measure
from experiments import blackbox as black
from experiments import cifar as cifar10
from experiments import figure1 as first
from experiments import figure2 as second
from experiments import methods, paper
from experiments import published as others
from experiments import start as beginning
from experiments import whitebox as white
from experiments.cells import (
    NOTHING,
    cell,
    difference,
    differences,
    groups,
    markdown,
    percent,
    points,
    validated,
    validations,
    values,
)
from experiments.figure2 import BETAS
from keras_mart.evaluation.presets import TRANSFER
from keras_mart.losses import BOOST_OFFSET
from keras_mart.methods import MART

NAMES = {
    "standard": "Standard", "at": "AT", "alp": "ALP", "clp": "CLP", "mma": "MMA", "trades": "TRADES", "mart": "MART",
}  # fmt: skip
ATTACKS = {
    "natural": "natural", "fgsm": "FGSM", "pgd10": "PGD-10", "pgd20": "PGD-20", "cw": "CW", "apgd-t": "APGD-T",
    "autoattack": "AutoAttack", "pgd50x10": "PGD-50, worst of 10 restarts", "pgd100-2": "PGD-100, 2/255",
    "pgd100-1": "PGD-100, 1/255", "apgd-t-2": "APGD-T, 2/255",
}  # fmt: skip
LONGER = {
    f"{method}-{suffix}": f"{NAMES[method]}, {more.name}"
    for suffix, more in white.LONGER.items()
    for method in more.methods
}
LENGTHS = ("", *(f"-{suffix}" for suffix in white.LONGER))  # of the white-box table's trainings
FIVE = ("natural", "fgsm", "pgd20", "cw", "autoattack")
TWO = ("pgd20", "apgd-t")
NATURAL_TOO = ("natural", *TWO)
CIFAR10 = {method: NAMES[method] for method in cifar10.METHODS} | {cifar10.CHEAP: "AT, one-cycle rate, 30 epochs"}
NOT_RUN = "not run yet"
SETS = {"misclassified": "S-", "correct": "S+"}
TREATMENTS = {"natural": "unperturbed", "fgsm": "FGSM", "regularised": "with KL(p, q)"}
CONTROL = {first.CONTROL: "AT, natural images too"}
PARTS = {
    "mart": "MART", "no_weight": "without the weight", "no_kl": "without KL", "no_weight_no_kl": "without both",
    "ce": "CE for BCE", "natural_bce": "BCE on natural images", "kl_attack": "KL in the attack",
}  # fmt: skip
PANELS = {"a": ("mart", "no_weight", "no_kl", "no_weight_no_kl"), "b": ("mart", "ce", "natural_bce", "kl_attack")}
SHARES = {0: "no_weight_no_kl", **{share: f"share-{share}" for share in second.SHARES}, 1: "mart"}  # and its runs
LABELS = {"labelled": "the labelled alone", "unlabelled": "and the unlabelled", "all": "all with their labels"}
OPTIMIZERS = {"adam": "Adam", "sgd": "SGD"}
EPOCHS = (1, 2, 3, 5, 10)  # of those shown of a training's start
MART_ON_CIFAR10 = "The paper's MART on CIFAR-10"
ROBUST = ("at", "trades")  # the methods that MART's lead is told against


def accuracies(title, found, names, columns, which, base=None):
    """A table of variants against attacks, below a line that tells what it shows.

    Differences of several runs come with the interval of their mean.

    Args:
        title: the line.
        found: variant to runs, as `groups` gives them.
        names: variant to its name in the table; those that were not judged are left out.
        columns: names of attacks.
        which: "best" or "last".
        base: the variant from which the others' differences are told, by `columns` but natural.
    """
    table = {variant: [values(found.get(variant, {}), each, which) for each in columns] for variant in names}
    table = {variant: row for variant, row in table.items() if any(row)}
    if not table:
        return []
    compared = [number for number, each in enumerate(columns) if base in table and each != "natural"]
    head = ["", *(ATTACKS[each] for each in columns)]
    head += [f"{ATTACKS[columns[number]]}, difference to {names[base]}" for number in compared]
    rows = []
    for variant, row in table.items():
        changes = [
            difference(row[each], table[base][each], interval=True) if variant != base else "" for each in compared
        ]
        rows.append([names[variant], *map(cell, row), *changes])
    return [title, markdown(head, [*rows, [*_counts(table.values()), *[""] * len(compared)]])]


def _counts(rows):
    """The last line of a table of {seed: Value}: for each column, how many test images stand behind it."""
    found = [
        sorted({value.examples for each in column for value in each.values()}) for column in zip(*rows, strict=True)
    ]
    texts = (" to ".join(f"{each:,}" for each in dict.fromkeys(counts[:1] + counts[-1:])) for counts in found)
    return ["test images", *(text or NOTHING for text in texts)]


def cifar(studies):
    """The paper's figures, those of public reruns, ours, and the differences."""
    found = groups(studies.get("cifar", {}))
    rows, judged = [], []
    for method, name in CIFAR10.items():
        theirs, others = paper.CIFAR10.get(method), paper.AUTOATTACK.get(method)
        rows += [[f"{name}, {each.certainty}", *_given(each)] for each in (theirs, others) if each]
        for which in ("best", "last"):
            row = [values(found.get(method, {}), attack, which) for attack in FIVE]
            judged.append(row)
            rows.append([f"{name}, ours, {which}", *(cell(each) if each else NOT_RUN for each in row)])
            if theirs and which == "best" and any(row):
                rows.append([f"{name}, ours, best, minus these", *_minus(row, theirs.accuracy | others.accuracy)])
    title = (
        "CIFAR-10, in percent. Of the reruns the lowest and the highest are given; ours stand against the middle of "
        "them and, in brackets, against the highest and the lowest:"
    )
    counts = [_counts(judged)] if any(map(any, judged)) else []
    table = markdown(["", *(ATTACKS[each] for each in FIVE)], rows + counts)
    return [title, table, _certainties(paper.CIFAR10, paper.AUTOATTACK), *_gaps(found), *_leads(found), *_published()]


def _given(cited):
    """The cells of the five attacks in a row of others' figures."""
    texts = {name: NOTHING for name in FIVE}
    for name, value in cited.accuracy.items():
        texts[name] = " to ".join(f"{each:.2f}" for each in (value if isinstance(value, tuple) else (value,)))
    return texts.values()


def _minus(row, cited):
    """The cells of ours minus others' figures, which may be (lowest, highest)."""
    for attack, ours in zip(FIVE, row, strict=True):
        if not ours:
            yield NOTHING
            continue
        accuracy, theirs = 100 * statistics.mean(each.accuracy for each in ours.values()), cited[attack]
        if isinstance(theirs, tuple):
            low, high = theirs
            yield f"{accuracy - (low + high) / 2:+.2f} ({accuracy - high:+.2f} to {accuracy - low:+.2f})"
        else:
            yield f"{accuracy - theirs:+.2f}"


def published(studies):
    """The published figures of others' networks, and ours."""
    rows = []
    for name, network in others.NETWORKS.items():
        record = studies["published"].get(name, {"evaluations": {}})
        for attack in ("natural", *network.attacks):
            theirs, ours = network.published.get(attack), values({0: record}, attack, "best", attack)
            row = [name, ATTACKS[attack], NOTHING if theirs is None else f"{theirs:.2f}"]
            if not ours:
                rows.append([*row, NOT_RUN, "", ""])
                continue
            minus = NOTHING if theirs is None else f"{100 * ours[0].accuracy - theirs:+.2f}"
            rows.append([*row, cell(ours), minus, f"{ours[0].examples:,}"])
    return [markdown(["file", "", "published", "ours", "difference", "test images"], rows)]


def whitebox(studies):
    found = groups(studies["whitebox"])
    others = {method: runs for method, runs in found.items() if not all(map(_ends_best, runs.values()))}
    blocks = accuracies("MNIST, best checkpoint:", found, NAMES | LONGER, FIVE, "best")
    blocks += accuracies("MNIST, last checkpoint, where it is not the best:", others, NAMES | LONGER, FIVE, "last")
    return [*blocks, _pace(found), *_beside_paper(found), *_gaps(found), *_leads(found)]


def _ends_best(record):
    """Whether the last checkpoint is the best: it got the same images right."""
    return all(each["outcomes"]["best"] == each["outcomes"]["last"] for each in record["evaluations"].values())


def _pace(found):
    """How many runs end with their best checkpoint, and how much was still gained at the end."""
    judged = [record for runs in found.values() for record in runs.values() if record["evaluations"]]
    told = []
    for method, name in (NAMES | LONGER).items():
        gains = []
        for record in found.get(method, {}).values():
            *_, before, last = [None, None, *validations(record).values()]
            if before is not None:
                gains.append(last - before)
        if gains:
            told.append(f"{name} {points(statistics.mean(gains))}")
    return (
        f"The last checkpoint is the best in {sum(map(_ends_best, judged))} of {len(judged)} runs. What validation "
        f"accuracy under PGD-20 gained from the last but one validation to the last: {', '.join(told) or NOTHING}."
    )


def _beside_paper(found):
    """The paper's figures for MNIST, and how far ours lie from them."""
    rows = []
    for method, name in (NAMES | LONGER).items():
        cited = paper.MNIST.get(method.partition("-")[0])
        if cited is None or (method in LONGER and method not in found):
            continue
        cells = []
        for attack, theirs in cited.accuracy.items():
            ours = [each.accuracy for each in values(found.get(method, {}), attack, "best").values()]
            cells.append(f"{theirs:.2f} ({100 * statistics.mean(ours) - theirs:+.2f})" if ours else f"{theirs:.2f}")
        rows.append([name, *cells, cited.certainty])
    title = (
        "The paper's figures for MNIST and, in brackets, ours (best checkpoint, mean over seeds) minus the paper's, "
        f"whose authors' own reruns lie within {paper.RERUNS_WITHIN} points:"
    )
    head = ["", *(ATTACKS[attack] for attack in paper.MNIST["mart"].accuracy), "how certain"]
    other = "The paper's MMA is another form of the method (see above)."
    return [title, markdown(head, rows), f"{_certainties(paper.MNIST)} {other}"]


def _certainties(*cited):
    found = dict.fromkeys(row.certainty for table in cited for row in table.values())
    return "; ".join(f'"{each}": {paper.CERTAINTY[each]}' for each in found) + "."


def _common(runs):
    """(under PGD-20, under AutoAttack) of the best checkpoint, on the images that AutoAttack saw."""
    return [values(runs, attack, "best", "autoattack") for attack in ("pgd20", "autoattack")]


def _gaps(found):
    pairs = {name: _common(found.get(method, {})) for method, name in (NAMES | LONGER).items()}
    told = [f"{name} {difference(*pair, interval=True)}" for name, pair in pairs.items() if differences(*pair)]
    return [f"PGD-20 minus AutoAttack, best checkpoint: {'; '.join(told)}."] if told else []


def _leads(found):
    """MART's lead under both attacks, and what of it AutoAttack leaves."""
    rows = []
    names = NAMES | LONGER
    for ours, theirs in [(f"mart{length}", f"{each}{length}") for length in LENGTHS for each in ROBUST]:
        pairs = list(zip(_common(found.get(ours, {})), _common(found.get(theirs, {})), strict=True))
        if any(differences(*pair) for pair in pairs):
            told = [difference(*pair, interval=True) for pair in pairs]
            rows.append([f"{NAMES['mart']} minus {names[theirs]}", *told, len(differences(*pairs[0]))])
    title = "MART's lead, best checkpoint: under PGD-20, and what AutoAttack leaves of it:"
    return [title, markdown(["", "PGD-20", "AutoAttack", "seeds"], rows)] if rows else []


def _published():
    """The same lead on CIFAR-10, from the paper and from those who ran its networks against AutoAttack."""
    rows, white_box, strong = [], paper.CIFAR10, paper.AUTOATTACK
    for method in ROBUST:
        lead = white_box["mart"].accuracy["pgd20"] - white_box[method].accuracy["pgd20"]
        (low, high), (least, most) = (strong[each].accuracy["autoattack"] for each in ("mart", method))
        certain = dict.fromkeys(table[each].certainty for table in (white_box, strong) for each in ("mart", method))
        left = f"{low - most:+.2f} to {high - least:+.2f}"
        rows.append([f"MART minus {NAMES[method]}", f"{lead:+.2f}", left, ", ".join(certain)])
    title = "MART's lead on CIFAR-10 (ResNet-18) as published, AutoAttack's from reruns, the least to the most:"
    return [title, markdown(["", "PGD-20", "AutoAttack", "how certain"], rows)]


def start(studies):
    """Loss and accuracy on adversarial training images in some epochs, beside the white-box table's runs."""
    recipe = white.recipe("", 1)
    runs = {_start(run.flags): studies["start"].get(run.name) for run in beginning.runs(recipe)}
    for method in ("at", "mart"):
        runs[_start(recipe | {"method": method})] = studies.get("whitebox", {}).get(f"{method}-0")
    order = sorted(runs, key=lambda name: (name.startswith(NAMES["mart"]), OPTIMIZERS["adam"] in name))
    runs = {name: runs[name] for name in order}
    rows = []
    for name, record in runs.items():
        history = {int(row["epoch"]): row for row in record["history"]} if record else {}
        told = (history.get(epoch) for epoch in EPOCHS)
        cells = [f"{row['loss']:.3f}, {percent(row['adversarial_accuracy'], '.1f')}" if row else "" for row in told]
        if history:
            *_, last = [None, *validations(record).values()]
            rows.append([name, *cells, NOTHING if last is None else percent(last)])
    head = ["", *(f"epoch {number}" for number in EPOCHS), "PGD-20, validation, at the end"]
    at, mart = math.log(10), math.log(10) - math.log(BOOST_OFFSET - 0.1)
    title = (
        f"Training loss (at chance AT's is {at:.3f}, MART's {mart:.3f}) and accuracy on adversarial training images:"
    )
    return [title, markdown(head, rows)]


def _start(flags):
    optimizer = f"{OPTIMIZERS[flags['optimizer']]}, rate {flags['learning_rate']}"
    return f"{NAMES[flags['method']]}, {optimizer}, epsilon {flags['epsilon']}"


def blackbox(studies):
    found, white_box = groups(studies["blackbox"]), groups(studies.get("whitebox", {}))
    attacks = ["natural", *black.ATTACKS.split(",")]
    head = ["", *(ATTACKS[attack.removeprefix(TRANSFER)] for attack in attacks), "PGD-20, white box"]
    blocks = []
    for source in black.SOURCES:
        rows, judged = [], []
        for method in white.METHODS:
            row = [values(found.get(method, {}), attack, "best", source) for attack in attacks]
            row.append(values(white_box.get(method, {}), "pgd20", "best"))
            if any(row[:-1]):
                rows.append([NAMES[method], *map(cell, row)])
                judged.append(row)
        if rows:
            title = f"Made on the network of {NAMES[source]}, best checkpoint:"
            blocks += [title, markdown(head, [*rows, _counts(judged)])]
    low, high = paper.AUTOATTACK["mart"].accuracy["autoattack"]
    white_box = f"White box, AutoAttack leaves {low:.2f} to {high:.2f} of it ({paper.AUTOATTACK['mart'].certainty})."
    return [*blocks, f"{_cited(MART_ON_CIFAR10, paper.BLACK_BOX)} {white_box}"]


def _cited(what, *cited):
    told = [
        f"{ATTACKS[attack]} {accuracy:.2f} ({each.certainty})"
        for each in cited
        for attack, accuracy in each.accuracy.items()
    ]
    return f"{what}: {', '.join(told)}."


def figure1(studies):
    found = groups(studies["figure1"])
    pairs = {(one, chosen): f"{one}-{chosen}" for one in methods.TREATMENTS for chosen in first.SETS}
    names = {name: f"{SETS[chosen]} {TREATMENTS[one]}" for (one, chosen), name in pairs.items()}
    regularised = {name: told for name, told in names.items() if name.startswith("regularised")}
    others = {"at": NAMES["at"], **{name: told for name, told in names.items() if name not in regularised}}
    blocks = [_split(studies["figure1"])]
    blocks += accuracies("(a), (b) Last checkpoint:", found, others, NATURAL_TOO, "last", base="at")
    blocks += accuracies("(c) Last checkpoint:", found, CONTROL | regularised, NATURAL_TOO, "last", base=first.CONTROL)
    rows = []
    for one in methods.TREATMENTS:
        row = []
        for attack in TWO:
            ours, theirs = (values(found.get(pairs[one, chosen], {}), attack, "last") for chosen in first.SETS)
            seeds = ", ".join(map(points, differences(ours, theirs).values())) or NOTHING
            row += [seeds, difference(ours, theirs, interval=True)]
        if set(row) != {NOTHING}:
            rows.append([TREATMENTS[one], *row])
    head = ["", *(f"{ATTACKS[attack]}{each}" for attack in TWO for each in (", seed by seed", ", mean"))]
    return blocks + (["S- minus S+, pairs of runs with the same seed:", markdown(head, rows)] if rows else [])


def _split(results):
    """How large S- and S+ are."""
    split = results.get("at-0", {}).get("split")
    if split is None:
        return ""
    whole, wrong, classes = split["training examples"], split["misclassified"], split["of each class"]
    told = f"AT's network misclassifies {wrong:,} of {whole:,} training images ({percent(wrong / whole, '.1f')}%)."
    sets = (f"{SETS[name]} has {sum(each):,} ({', '.join(map(str, each))})" for name, each in classes.items())
    return f"{told} By classes, {'; '.join(sets)}."


def figure2(studies):
    found = groups(studies["figure2"])
    blocks = []
    for letter, parts in PANELS.items():
        names = {each: PARTS[each] for each in parts}
        title = f"({letter}) Last checkpoint:"
        blocks += accuracies(title, found, names, NATURAL_TOO, "last", base="mart")
    names = {name: f"{share:g}" for share, name in SHARES.items()}
    title = "(c) Share of the training examples that the second term counts for; last checkpoint:"
    blocks += accuracies(title, found, names, NATURAL_TOO, "last", base="mart")
    return blocks + _betas({name: {0: runs[0]} for name, runs in found.items() if 0 in runs})


def _betas(found):
    """Both methods, beta by beta, and MART's lead at the same beta."""
    names = {beta_run(method, beta): f"{NAMES[method]} {beta:g}" for method in ("mart", "trades") for beta in BETAS}
    blocks = accuracies("(d) Method and beta; seed 0, last checkpoint:", found, names, NATURAL_TOO, "last")
    rows = []
    for beta in BETAS:
        runs = [found.get(beta_run(method, beta), {}) for method in ("mart", "trades")]
        row = [difference(*(values(each, attack, "last") for each in runs)) for attack in NATURAL_TOO]
        if set(row) != {NOTHING}:
            rows.append([f"{beta:g}", *row])
    head = ["beta", *(ATTACKS[each] for each in NATURAL_TOO)]
    return blocks + (["(d) MART minus TRADES at the same beta:", markdown(head, rows)] if rows else [])


def beta_run(method, beta):
    """The runs of figure 2 with that beta: MART's own beta is MART itself."""
    return "mart" if (method, beta) == ("mart", MART.default_beta) else f"{method}-beta-{beta}"


def unlabelled(studies):
    found = groups(studies["unlabelled"])
    blocks = [_labels(studies["unlabelled"]), *accuracies("MNIST, best checkpoint:", found, LABELS, FIVE, "best")]
    rows = []
    for more in ("unlabelled", "all"):
        pairs = [[values(found.get(name, {}), each, "best") for name in (more, "labelled")] for each in FIVE]
        if any(differences(*pair) for pair in pairs):
            rows.append([LABELS[more], *(difference(*pair) for pair in pairs)])
    if rows:
        head = ["", *(ATTACKS[each] for each in FIVE)]
        blocks += [f"The same minus those of {LABELS['labelled']}:", markdown(head, rows)]
    blocks.append(_fit(found))
    cited = (paper.UNLABELLED, paper.UNLABELLED_AUTOATTACK)
    return [*blocks, _cited("The paper's WRN-28-10 on CIFAR-10 with 500,000 unlabelled images", *cited)]


def _fit(found):
    """How much better the networks are on the images that they are trained on."""
    told = []
    for name, told_as in LABELS.items():
        for record in found.get(name, {}).values():
            if record["history"]:
                row = record["history"][-1]
                training, validation = percent(row["adversarial_accuracy"]), percent(validated(row))
                told.append(f"{told_as} {training} and {validation}")
    if not told:
        return ""
    where = "in training (40 steps, with dropout) and in validation (PGD-20)"
    return f"Accuracy on adversarial images in the last epoch, {where}: {'; '.join(told)}."


def _labels(results):
    """How many of the pseudo-labels are right."""
    labels = results.get("labeller", {}).get("labels")
    if labels is None:
        return ""
    share = percent(labels["right"] / labels["images"])
    return f"Of the labels that the standard network gives {labels['images']:,} images {share}% are right."


def wide_resnet(studies):
    """What one run of a few steps wrote, line by line."""
    rows = []
    for name, found in studies["wide_resnet"].items():
        if name not in ("flags", "machine"):
            rows.append([name, ", ".join(map(str, found)) if isinstance(found, list) else _number(found)])
    flags = studies["wide_resnet"]["flags"]
    return [markdown(["", "measured"], rows), flags and f"Flags: {measure.line(flags)}."]


def _number(value):
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
