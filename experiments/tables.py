"""The report's tables: functions from results to Markdown. cells.py formats their cells."""

import math
import statistics

from benchmarks import measure
from experiments import blackbox as blackbox_study
from experiments import cifar as cifar_study
from experiments import figure1 as figure1_study
from experiments import figure2 as figure2_study
from experiments import methods, paper
from experiments import published as published_study
from experiments import start as start_study
from experiments import whitebox as whitebox_study
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
    f"{method}-{suffix}": f"{NAMES[method]}, {training.name}"
    for suffix, training in whitebox_study.LONGER.items()
    for method in training.methods
}
LENGTHS = ("", *(f"-{suffix}" for suffix in whitebox_study.LONGER))  # suffixes of the white-box table's runs
FIVE = ("natural", "fgsm", "pgd20", "cw", "autoattack")
TWO = ("pgd20", "apgd-t")
NATURAL_TOO = ("natural", *TWO)
CIFAR10 = {method: NAMES[method] for method in cifar_study.METHODS}
CIFAR10 |= {cifar_study.CHEAP: "AT, one-cycle rate, 30 epochs"}
NOT_RUN = "not run yet"
SETS = {"misclassified": "S-", "correct": "S+"}
TREATMENTS = {"natural": "unperturbed", "fgsm": "FGSM", "regularised": "with KL(p, q)"}
CONTROL = {figure1_study.CONTROL: "AT, natural images too"}
PARTS = {
    "mart": "MART", "no_weight": "without the weight", "no_kl": "without KL", "no_weight_no_kl": "without both",
    "ce": "CE for BCE", "natural_bce": "BCE on natural images", "kl_attack": "KL in the attack",
}  # fmt: skip
PANELS = {"a": ("mart", "no_weight", "no_kl", "no_weight_no_kl"), "b": ("mart", "ce", "natural_bce", "kl_attack")}
SHARES = {0: "no_weight_no_kl", **{share: f"share-{share}" for share in figure2_study.SHARES}, 1: "mart"}  # share: run
LABELS = {"labelled": "labelled only", "unlabelled": "with unlabelled images", "all": "all with true labels"}
OPTIMIZERS = {"adam": "Adam", "sgd": "SGD"}
EPOCHS = (1, 2, 3, 5, 10)  # shown in the table of the start of training
MART_ON_CIFAR10 = "The paper's MART on CIFAR-10"
ROBUST = ("at", "trades")  # methods to which MART's lead is given


def accuracies(title, found, names, columns, which, base=None):
    """Returns a table with a row for each variant and a column for each attack, below a title.

    Differences of several runs include the interval of their mean.

    Args:
        title: line above the table.
        found: {variant: runs} from `groups`.
        names: {variant: name in the table}; variants that were not evaluated are left out.
        columns: names of attacks.
        which: "best" or "last".
        base: variant to which the others' differences are added, for all `columns` except natural.
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
    """Returns the last row of a table of {seed: Value}: the number of test images of each column."""
    found = [
        sorted({value.examples for each in column for value in each.values()}) for column in zip(*rows, strict=True)
    ]
    texts = (" to ".join(f"{each:,}" for each in dict.fromkeys(counts[:1] + counts[-1:])) for counts in found)
    return ["test images", *(text or NOTHING for text in texts)]


def cifar(studies):
    """Returns the paper's figures, those of public reruns, ours, and the differences."""
    found = groups(studies.get("cifar", {}))
    rows, ours = [], []
    for method, name in CIFAR10.items():
        theirs, reruns = paper.CIFAR10.get(method), paper.AUTOATTACK.get(method)
        rows += [[f"{name}, {each.certainty}", *_cited_cells(each)] for each in (theirs, reruns) if each]
        for which in ("best", "last"):
            row = [values(found.get(method, {}), attack, which) for attack in FIVE]
            ours.append(row)
            rows.append([f"{name}, ours, {which}", *(cell(each) if each else NOT_RUN for each in row)])
            if theirs and which == "best" and any(row):
                cells = _differences_to_cited(row, theirs.accuracy | reruns.accuracy)
                rows.append([f"{name}, ours, best, minus these", *cells])
    title = (
        "CIFAR-10, in percent. For the reruns, the lowest and the highest accuracy are given; ours are compared with "
        "their midpoint and, in brackets, with the highest and the lowest:"
    )
    counts = [_counts(ours)] if any(map(any, ours)) else []
    table = markdown(["", *(ATTACKS[each] for each in FIVE)], rows + counts)
    return [title, table, _certainties(paper.CIFAR10, paper.AUTOATTACK), *_gaps(found), *_leads(found), *_published()]


def _cited_cells(cited):
    """Returns the cells of the five attacks in a row of published figures."""
    texts = {name: NOTHING for name in FIVE}
    for name, value in cited.accuracy.items():
        texts[name] = " to ".join(f"{each:.2f}" for each in (value if isinstance(value, tuple) else (value,)))
    return texts.values()


def _differences_to_cited(row, cited):
    """Yields the cells of ours minus published figures, which may be (lowest, highest)."""
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
    """Returns the published figures of others' networks, and ours."""
    rows = []
    for name, network in published_study.NETWORKS.items():
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
    differing = {method: runs for method, runs in found.items() if not all(map(_last_is_best, runs.values()))}
    blocks = accuracies("MNIST, best checkpoint:", found, NAMES | LONGER, FIVE, "best")
    blocks += accuracies("MNIST, last checkpoint, where it is not the best:", differing, NAMES | LONGER, FIVE, "last")
    return [*blocks, _gains_at_the_end(found), *_beside_paper(found), *_gaps(found), *_leads(found)]


def _last_is_best(record):
    """Returns whether the last checkpoint is the best one: both classify the same images correctly."""
    return all(each["outcomes"]["best"] == each["outcomes"]["last"] for each in record["evaluations"].values())


def _gains_at_the_end(found):
    """Formats the number of runs that end with their best checkpoint, and the gain of the last validation."""
    evaluated = [record for runs in found.values() for record in runs.values() if record["evaluations"]]
    texts = []
    for method, name in (NAMES | LONGER).items():
        gains = []
        for record in found.get(method, {}).values():
            *_, before, last = [None, None, *validations(record).values()]
            if before is not None:
                gains.append(last - before)
        if gains:
            texts.append(f"{name} {points(statistics.mean(gains))}")
    return (
        f"The last checkpoint is the best in {sum(map(_last_is_best, evaluated))} of {len(evaluated)} runs. Gain in "
        "validation accuracy under PGD-20 from the second-last validation to the last: "
        f"{', '.join(texts) or NOTHING}."
    )


def _beside_paper(found):
    """Returns the paper's figures for MNIST, with the differences of ours."""
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
        "The paper's figures for MNIST and, in brackets, ours (best checkpoint, mean over seeds) minus the paper's; "
        f"the authors' own reruns differ by at most {paper.RERUNS_WITHIN} points:"
    )
    head = ["", *(ATTACKS[attack] for attack in paper.MNIST["mart"].accuracy), "source"]
    other = "The paper's MMA is a different form of the method (see above)."
    return [title, markdown(head, rows), f"{_certainties(paper.MNIST)} {other}"]


def _certainties(*cited):
    found = dict.fromkeys(row.certainty for table in cited for row in table.values())
    return "; ".join(f'"{each}": {paper.CERTAINTY[each]}' for each in found) + "."


def _common(runs):
    """Returns the best checkpoint's values under PGD-20 and AutoAttack, on the images used for AutoAttack."""
    return [values(runs, attack, "best", "autoattack") for attack in ("pgd20", "autoattack")]


def _gaps(found):
    pairs = {name: _common(found.get(method, {})) for method, name in (NAMES | LONGER).items()}
    texts = [f"{name} {difference(*pair, interval=True)}" for name, pair in pairs.items() if differences(*pair)]
    return [f"PGD-20 minus AutoAttack, best checkpoint: {'; '.join(texts)}."] if texts else []


def _leads(found):
    """Returns MART's lead under PGD-20 and under AutoAttack."""
    rows = []
    names = NAMES | LONGER
    for ours, theirs in [(f"mart{length}", f"{each}{length}") for length in LENGTHS for each in ROBUST]:
        pairs = list(zip(_common(found.get(ours, {})), _common(found.get(theirs, {})), strict=True))
        if any(differences(*pair) for pair in pairs):
            cells = [difference(*pair, interval=True) for pair in pairs]
            rows.append([f"{NAMES['mart']} minus {names[theirs]}", *cells, len(differences(*pairs[0]))])
    title = "MART's lead under PGD-20 and under AutoAttack, best checkpoint:"
    return [title, markdown(["", "PGD-20", "AutoAttack", "seeds"], rows)] if rows else []


def _published():
    """Returns the same lead on CIFAR-10, from the paper and from reruns of its networks under AutoAttack."""
    rows, published, reruns = [], paper.CIFAR10, paper.AUTOATTACK
    for method in ROBUST:
        lead = published["mart"].accuracy["pgd20"] - published[method].accuracy["pgd20"]
        (low, high), (least, most) = (reruns[each].accuracy["autoattack"] for each in ("mart", method))
        sources = dict.fromkeys(table[each].certainty for table in (published, reruns) for each in ("mart", method))
        under_autoattack = f"{low - most:+.2f} to {high - least:+.2f}"
        rows.append([f"MART minus {NAMES[method]}", f"{lead:+.2f}", under_autoattack, ", ".join(sources)])
    title = "MART's published lead on CIFAR-10 (ResNet-18); under AutoAttack from reruns, lowest to highest:"
    return [title, markdown(["", "PGD-20", "AutoAttack", "source"], rows)]


def start(studies):
    """Returns loss and accuracy on adversarial training images in some epochs, with the white-box table's runs."""
    recipe = whitebox_study.recipe("", 1)
    runs = {_start_name(run.flags): studies["start"].get(run.name) for run in start_study.runs(recipe)}
    for method in ("at", "mart"):
        runs[_start_name(recipe | {"method": method})] = studies.get("whitebox", {}).get(f"{method}-0")
    order = sorted(runs, key=lambda name: (name.startswith(NAMES["mart"]), OPTIMIZERS["adam"] in name))
    runs = {name: runs[name] for name in order}
    rows = []
    for name, record in runs.items():
        history = {int(row["epoch"]): row for row in record["history"]} if record else {}
        shown = (history.get(epoch) for epoch in EPOCHS)
        cells = [f"{row['loss']:.3f}, {percent(row['adversarial_accuracy'], '.1f')}" if row else "" for row in shown]
        if history:
            *_, last = [None, *validations(record).values()]
            rows.append([name, *cells, NOTHING if last is None else percent(last)])
    head = ["", *(f"epoch {number}" for number in EPOCHS), "final validation, PGD-20"]
    at, mart = math.log(10), math.log(10) - math.log(BOOST_OFFSET - 0.1)
    title = (
        f"Training loss (at chance {at:.3f} for AT, {mart:.3f} for MART) and accuracy on adversarial training images:"
    )
    return [title, markdown(head, rows)]


def _start_name(flags):
    optimizer = f"{OPTIMIZERS[flags['optimizer']]}, rate {flags['learning_rate']}"
    return f"{NAMES[flags['method']]}, {optimizer}, epsilon {flags['epsilon']}"


def blackbox(studies):
    found, white_box = groups(studies["blackbox"]), groups(studies.get("whitebox", {}))
    attacks = ["natural", *blackbox_study.ATTACKS.split(",")]
    head = ["", *(ATTACKS[attack.removeprefix(TRANSFER)] for attack in attacks), "PGD-20, white box"]
    blocks = []
    for source in blackbox_study.SOURCES:
        table = {}
        for method in whitebox_study.METHODS:
            row = [values(found.get(method, {}), attack, "best", source) for attack in attacks]
            if any(row):
                table[method] = [*row, values(white_box.get(method, {}), "pgd20", "best")]
        if table:
            rows = [[NAMES[method], *map(cell, row)] for method, row in table.items()]
            title = f"Made on the network of {NAMES[source]}, best checkpoint:"
            blocks += [title, markdown(head, [*rows, _counts(table.values())])]
    low, high = paper.AUTOATTACK["mart"].accuracy["autoattack"]
    under_autoattack = f"Its white-box accuracy under AutoAttack is {low:.2f} to {high:.2f}"
    under_autoattack += f" ({paper.AUTOATTACK['mart'].certainty})."
    return [*blocks, f"{_cited(MART_ON_CIFAR10, paper.BLACK_BOX)} {under_autoattack}"]


def _cited(title, *cited):
    texts = [
        f"{ATTACKS[attack]} {accuracy:.2f} ({each.certainty})"
        for each in cited
        for attack, accuracy in each.accuracy.items()
    ]
    return f"{title}: {', '.join(texts)}."


def figure1(studies):
    found = groups(studies["figure1"])
    sets = figure1_study.SETS
    pairs = {(treatment, chosen): f"{treatment}-{chosen}" for treatment in methods.TREATMENTS for chosen in sets}
    names = {name: f"{SETS[chosen]} {TREATMENTS[treatment]}" for (treatment, chosen), name in pairs.items()}
    regularised = {name: text for name, text in names.items() if name.startswith("regularised")}
    perturbed = {"at": NAMES["at"], **{name: text for name, text in names.items() if name not in regularised}}
    blocks, control = [_split(studies["figure1"])], figure1_study.CONTROL
    blocks += accuracies("(a), (b) Last checkpoint:", found, perturbed, NATURAL_TOO, "last", base="at")
    blocks += accuracies("(c) Last checkpoint:", found, CONTROL | regularised, NATURAL_TOO, "last", base=control)
    rows = []
    for treatment in methods.TREATMENTS:
        row = []
        for attack in TWO:
            minus, plus = (values(found.get(pairs[treatment, chosen], {}), attack, "last") for chosen in sets)
            seeds = ", ".join(map(points, differences(minus, plus).values())) or NOTHING
            row += [seeds, difference(minus, plus, interval=True)]
        if set(row) != {NOTHING}:
            rows.append([TREATMENTS[treatment], *row])
    head = ["", *(f"{ATTACKS[attack]}{each}" for attack in TWO for each in (", each seed", ", mean"))]
    return blocks + (["S- minus S+, pairs of runs with the same seed:", markdown(head, rows)] if rows else [])


def _split(results):
    """Formats the sizes of S- and S+."""
    split = results.get("at-0", {}).get("split")
    if split is None:
        return ""
    count, wrong, classes = split["training examples"], split["misclassified"], split["of each class"]
    text = f"AT's network misclassifies {wrong:,} of {count:,} training images ({percent(wrong / count, '.1f')}%)."
    sets = (f"{SETS[name]} has {sum(each):,} ({', '.join(map(str, each))})" for name, each in classes.items())
    return f"{text} By class, {'; '.join(sets)}."


def figure2(studies):
    found = groups(studies["figure2"])
    blocks = []
    for letter, parts in PANELS.items():
        names = {each: PARTS[each] for each in parts}
        title = f"({letter}) Last checkpoint:"
        blocks += accuracies(title, found, names, NATURAL_TOO, "last", base="mart")
    names = {name: f"{share:g}" for share, name in SHARES.items()}
    title = "(c) Share of the training examples with the second term; last checkpoint:"
    blocks += accuracies(title, found, names, NATURAL_TOO, "last", base="mart")
    return blocks + _betas({name: {0: runs[0]} for name, runs in found.items() if 0 in runs})


def _betas(found):
    """Returns both methods' accuracies for each beta, and MART's lead at the same beta."""
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
    """Returns the name of figure 2's runs of a method with a beta; MART's default beta is MART itself."""
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
        blocks += [f'Differences to "{LABELS["labelled"]}":', markdown(head, rows)]
    blocks.append(_training_accuracies(found))
    cited = (paper.UNLABELLED, paper.UNLABELLED_AUTOATTACK)
    return [*blocks, _cited("The paper's WRN-28-10 on CIFAR-10 with 500,000 unlabelled images", *cited)]


def _training_accuracies(found):
    """Formats the accuracies on adversarial training and validation images."""
    texts = []
    for name, label in LABELS.items():
        for record in found.get(name, {}).values():
            if record["history"]:
                row = record["history"][-1]
                training, validation = percent(row["adversarial_accuracy"]), percent(validated(row))
                texts.append(f"{label} {training} and {validation}")
    if not texts:
        return ""
    where = "in training (40 steps, with dropout) and in validation (PGD-20)"
    return f"Accuracy on adversarial images in the last epoch, {where}: {'; '.join(texts)}."


def _labels(results):
    """Formats the accuracy of the predicted labels."""
    labels = results.get("labeller", {}).get("labels")
    if labels is None:
        return ""
    share = percent(labels["right"] / labels["images"])
    return f"{share}% of the labels that the standard network predicts for {labels['images']:,} images are correct."


def wide_resnet(studies):
    """Returns a table of the measurements of a few steps."""
    rows = []
    for name, found in studies["wide_resnet"].items():
        if name not in ("flags", "machine"):
            rows.append([name, ", ".join(map(str, found)) if isinstance(found, list) else _number(found)])
    flags = studies["wide_resnet"]["flags"]
    return [markdown(["", "measured"], rows), flags and f"Flags: {measure.line(flags)}."]


def _number(value):
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
