"""Tests of the report: the content of its sections, notes on missing data, damaged files, and layout in a browser."""

import dataclasses
import html.parser
import json
import pathlib
import re
import shutil
import subprocess

import numpy as np
import pytest
import tensorflow as tf

from keras_mart.evaluation.report import formatting, page, report
from keras_mart.evaluation.report.charts import heatmap, svg
from keras_mart.evaluation.report.charts.pictures import picture
from keras_mart.evaluation.report.markup import Markup, tag
from keras_mart.evaluation.table import Table, wilson

SECTIONS = (
    "summary",
    "curves",
    "attacks",
    "classes",
    "epsilon",
    "gap",
    "checks",
    "confusion",
    "gallery",
    "configuration",
)
PGD = "PGD(threat=Linf(epsilon=0.1), steps=20)"
BALL, L2 = {"norm": "Linf", "epsilon": 0.1}, {"norm": "L2", "epsilon": 0.5}
STAGES = {"apgd-ce": {"class": "APGDCE", "threat": BALL, "rho": 0.75}, "square": {"class": "Square", "threat": BALL}}
RECORD = {
    "threat": BALL,
    "attacks": {
        "pgd20": {"class": "PGD", "threat": BALL, "steps": 20, "step_size": 1 / 255, "start": "uniform"},
        "autoattack": {"class": "AutoAttack", "threat": BALL, "version": "standard", "stages": STAGES},
        "fmn": {"class": "FMN", "threat": BALL, "steps": 100},
    },
    "precision": "float32",
    "seed": 7,
    "versions": {"keras": "3.15.1"},
}
BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)
HISTORY = """\
epoch,loss,natural_accuracy,adversarial_accuracy,val_loss,val_natural_accuracy,val_adversarial_accuracy,\
learning_rate
1,2.5,0.5,0.25,2.25,0.5,0.25,0.1
2,1.5,0.75,0.5,,,,0.1
3,nan,0.875,0.625,1.25,0.8125,0.5625,0.01
"""


def table(classes=4, examples=40, worst=0.5, **fields):
    """Returns a table in which natural images lose a tenth, pgd20 a quarter, and AutoAttack all but `worst`.

    Labels are 0, 1, 2, ...; misclassified examples are predicted as the next class.
    """
    labels = np.arange(examples) % classes

    def wrong(share):
        return np.where(np.arange(examples) < share * examples, (labels + 1) % classes, labels)

    predictions = {
        "natural": wrong(0.1),
        "pgd20": wrong(0.25),
        "autoattack/apgd-ce": wrong(0.3),
        "autoattack/square": wrong(1 - worst),
        "autoattack": wrong(1 - worst),
    }
    gradients = {name: 400 * place for place, name in enumerate(predictions)}
    return Table(labels, predictions, {name: 1.25 for name in predictions}, gradients, record=RECORD, **fields)


def make_run(path, method="mart", judged=None, channels=1, flags="--epsilon=0.1\n"):
    """Creates a run directory with all files that the report reads."""
    judged = judged or table()
    path.mkdir(parents=True)
    (path / "flags.cfg").write_text(f"--method={method}\n{flags}")
    (path / "history.csv").write_text(HISTORY)
    judged.save(path / "best.npz")
    last = {**judged.summary(), "accuracy": {**judged.accuracy, "natural": 0.8875}}
    write(path / "evaluation.json", {"best": judged.summary(), "last": last})
    checks = [
        {"name": "gradients_not_vanishing", "verdict": "passed", "figure": "0.2% exact zeros", "meaning": "They flow."},
        {"name": "transfer_is_weaker", "verdict": "flagged", "figure": "40.0% against 50.0%", "meaning": "It is not."},
        {"name": "forward_is_deterministic", "verdict": "skipped", "figure": "", "meaning": "Not looked at."},
    ]
    curve = {"epsilon": [0, 0.05, 0.1, 0.2, 1], "accuracy": [0.9, 0.75, 0.5, 0.1, 0.0], "examples": 40, "attack": PGD}
    write(path / "diagnosis.json", {"threat": BALL, "examples": 40, "checks": checks, "curve": curve})
    make_gallery(path / "gallery.npz", channels)
    return path


def make_gallery(path, channels):
    images = np.full((2, 6, 5, channels), 0.5, "float32")
    adversarial = images.copy()
    adversarial[:, 0, 0] += 0.1
    adversarial[:, 0, 1] -= 0.1
    classes = {"labels": [3, 1], "natural": [3, 1], "predicted": [2, 1]}
    np.savez(path, images=images, adversarial=adversarial, attack=PGD, epsilon=0.1, **classes)


def write(path, content):
    path.write_text(json.dumps(content))


def change(path, edit):
    content = json.loads(path.read_text())
    edit(content)
    write(path, content)


class Page(html.parser.HTMLParser):
    """Parses the text of each section, and all elements as (section, tag, attributes); fails if tags do not match."""

    def __init__(self, text):
        super().__init__()
        self.open, self.section, self.text, self.elements = [], None, {}, []
        self.feed(text)
        assert not self.open
        self.text = {name: " ".join(text.split()) for name, text in self.text.items()}

    def handle_starttag(self, name, attributes):
        if name == "section":
            self.section = dict(attributes)["id"]
            self.text[self.section] = ""
        self.elements.append((self.section, name, dict(attributes)))
        if name not in ("meta", "img"):
            self.open.append(name)

    def handle_endtag(self, name):
        assert self.open.pop() == name
        self.section = None if name == "section" else self.section

    def handle_data(self, data):
        if self.section and "style" not in self.open:
            self.text[self.section] += f" {data}"

    def find(self, section, name, **attributes):
        """Returns the attributes of the elements in a section that have at least the given ones."""
        return [
            found
            for where, tag_, found in self.elements
            if where == section and tag_ == name and attributes.items() <= found.items()
        ]


def read(runs, folder):
    return Page(report(runs, folder / "report.html").read_text(encoding="utf-8"))


@pytest.fixture
def shown(tmp_path):
    """The report on two runs."""
    runs = [make_run(tmp_path / "at", "at", table(worst=0.25)), make_run(tmp_path / "mart")]
    return read(runs, tmp_path)


def test_sections_are_in_order_and_have_headings(shown):
    assert tuple(shown.text) == SECTIONS
    assert all(len(shown.find(name, "h2")) == 1 for name in SECTIONS)


def test_summary_shows_natural_and_worst_case_accuracy(shown):
    low, high = wilson(0.5, 40)
    sentence = (
        "mart classifies 90.00% of the 40 test images correctly in float32, and 50.00% "
        f"(95% interval {low:.1%} to {high:.1%}) in the worst case over 2 attacks."
    )
    assert f"mart natural 90.00% worst case 50.00% {sentence}" in shown.text["summary"]
    assert "at classifies 90.00%" in shown.text["summary"] and "25.00%" in shown.text["summary"]
    assert "not evaluated in the same way" not in shown.text["summary"]


def test_header_names_runs_and_ball(tmp_path):
    text = report([make_run(tmp_path / "at", "at"), make_run(tmp_path / "mart")], tmp_path / "r.html").read_text()
    assert "<title>Robustness of at and mart</title>" in text
    assert "<h1>at and mart</h1>" in text and "L∞, epsilon 0.1 · 40 test examples" in text


def test_curves_show_what_was_measured(shown):
    labels = [each["aria-label"] for each in shown.find("curves", "svg", role="img")]
    assert len(labels) == 4
    assert "At the end: natural, training 87.5%, natural, validation 81.2%" in labels[2]
    assert labels[3] == "Loss of mart over the epochs, 1.25 at the end."
    for words_ in ("natural, training", "adversarial, validation"):
        assert words_ in shown.text["curves"]
    # Epochs 1, 2, 3 at a half, three quarters and seven eighths of 190 pixels.
    assert {"d": "M52 105L189 57.5L326 33.8h0", "class": "line dashed"} in shown.find("curves", "path")
    # The empty cell of epoch 2 is skipped.
    assert {"d": "M52 105L326 45.6h0", "class": "line solid"} in shown.find("curves", "path")


@pytest.mark.parametrize(
    ("history", "charts"),
    [
        ("epoch,loss,natural_accuracy\n1,2.0,0.5\n", 2),  # one epoch, no validation
        ("epoch,loss\n1,nan\n2,inf\n", 0),
        ("epoch,natural_accuracy\n1,0\n2,0\n", 1),
        ("epoch,loss\n1,-3.0\n2,-3.0\n", 1),
        ("", 0),
    ],
)
def test_curves_of_odd_histories(tmp_path, history, charts):
    run = make_run(tmp_path / "mart")
    (run / "history.csv").write_text(history)
    shown = read(run, tmp_path)
    assert len(shown.find("curves", "svg", role="img")) == charts
    assert ("not measured" in shown.text["curves"]) == (charts == 0)
    assert not any("nan" in path["d"] or "inf" in path["d"] for path in shown.find("curves", "path"))


def test_attacks_with_intervals_last_checkpoint_and_cost(shown):
    text = shown.text["attacks"]
    low, high = wilson(0.75, 40)
    assert f"pgd20 75.00% {low:.1%} to {high:.1%} last 75.00%" in text
    assert "natural 90.00%" in text and "last 88.75%" in text
    rows = ["natural", "pgd20", "autoattack", "apgd-ce", "square", "worst case"]
    assert [text.index(f" {row} ") for row in rows] == sorted(text.index(f" {row} ") for row in rows)
    assert len(shown.find("attacks", "tr", **{"class": "stage"})) == 4  # in the accuracies and in the costs
    assert "pgd20 PGD: steps 20, step_size 1/255, start uniform autoattack AutoAttack: version standard" in text
    assert "autoattack/apgd-ce APGDCE: rho 0.75 autoattack/square Square" in text
    assert "1.2 s 400 gradients" in text
    assert "The last checkpoint" not in text


def test_attacks_that_were_not_run_are_empty(tmp_path):
    runs = [make_run(tmp_path / "at", "at"), make_run(tmp_path / "mart")]

    def without_pgd(content):
        del content["best"]["accuracy"]["pgd20"], content["best"]["attacks"]["pgd20"]

    change(runs[0] / "evaluation.json", without_pgd)
    shown = read(runs, tmp_path)
    assert "pgd20 not measured 75.00%" in shown.text["attacks"]
    assert "The list of attacks is autoattack for at; pgd20 and autoattack for mart." in shown.text["attacks"]


def test_attacks_stopped_early_and_a_last_checkpoint_that_is_the_best(tmp_path):
    run = make_run(tmp_path / "mart")
    change(run / "evaluation.json", lambda content: content["best"].update(stop_early=True))
    change(run / "evaluation.json", lambda content: content.update(last=content["best"]))
    text = read(run, tmp_path).text["attacks"]
    assert "Each attack on mart ran only on the examples classified correctly under all attacks before it" in text
    assert "The last checkpoint of mart is its best." in text and "last 75.00%" not in text


def test_runs_that_were_evaluated_differently(tmp_path):
    runs = [make_run(tmp_path / "at", "at"), make_run(tmp_path / "trades", "trades"), make_run(tmp_path / "mart")]

    def differently(content):
        ball = {"norm": "L2", "epsilon": 8 / 255}
        content["best"] |= {"threat": ball, "examples": 4000, "precision": "bfloat16"}
        content |= {"dataset": "tfds:mnist", "sample": 1, "source": "at.keras"}
        attacks = content["best"]["attacks"]
        attacks["pgd20"]["steps"] = 50
        for attack in (*attacks.values(), *attacks["autoattack"]["stages"].values()):
            attack["threat"] = ball

    change(runs[0] / "evaluation.json", differently)
    for run in runs[1:]:
        other = {"dataset": "npz:mnist.npz", "sample": 0, "source": "standard.keras"}
        change(run / "evaluation.json", lambda content, other=other: content.update(other))
    shown = read(runs, tmp_path)
    for part in ("summary", "attacks"):
        assert "not evaluated in the same way" in shown.text[part]
        assert "The norm is L2 for at; L∞ for trades and mart." in shown.text[part]
        assert "Epsilon is 8/255 for at; 0.1 for trades and mart." in shown.text[part]
        assert "The precision is bfloat16 for at; float32 for trades and mart." in shown.text[part]
        assert "The number of test examples is 4,000 for at; 40 for trades and mart." in shown.text[part]
        assert "The dataset is tfds:mnist for at; npz:mnist.npz for trades and mart." in shown.text[part]
        assert "chose the test examples is 1 for at; 0 for trades and mart." in shown.text[part]
        assert "transfer attacks is at.keras for at; standard.keras for trades and mart." in shown.text[part]
        assert "The parameters of pgd20 are not the same for all runs." in shown.text[part]
    assert "at: PGD: steps 50, step_size 1/255, start uniform trades and mart: PGD: steps 20" in shown.text["attacks"]


def test_files_of_older_versions(tmp_path):
    run = make_run(tmp_path / "mart")

    def older(content):
        content["attacks"] = {"pgd20": PGD}
        for which in ("best", "last"):
            accuracy = {name: content[which]["accuracy"][name] for name in ("natural", "pgd20")}
            content[which] = {"examples": 40, "accuracy": accuracy, "seconds": {"pgd20": 3.0}}

    change(run / "evaluation.json", older)
    change(run / "diagnosis.json", lambda content: content.pop("threat"))
    shown = read(run, tmp_path)
    low, high = wilson(0.75, 40)
    assert f"75.00% (95% interval {low:.1%} to {high:.1%}) under pgd20, the strongest" in shown.text["summary"]
    assert f"{low:.1%} to {high:.1%}" in shown.text["attacks"] and "3.0 s" in shown.text["attacks"]
    assert "evaluated at 0.1" in shown.text["epsilon"]  # from the attack's repr
    assert f"pgd20 {PGD}" in shown.text["attacks"] and "correctly, and 75.00%" in shown.text["summary"]
    assert "The versions of mart : not measured" in shown.text["configuration"]


def test_older_and_newer_files_beside_each_other(tmp_path):
    """A repr and a dictionary are not compared with each other; two reprs are."""
    runs = [make_run(tmp_path / name, name) for name in ("at", "trades", "mart")]
    for run, steps in zip(runs[:2], (20, 50), strict=True):
        older = {"threat": BALL, "attacks": {"pgd20": PGD.replace("20", str(steps))}, "seed": 8}

        def edit(content, older=older):
            for name in RECORD:
                del content["best"][name]
            content |= older

        change(run / "evaluation.json", edit)
    shown = read([runs[0], runs[2]], tmp_path)
    assert (
        "not evaluated in the same way" not in shown.text["summary"]
        and f"at: {PGD} mart: PGD: steps" in shown.text["attacks"]
    )
    assert "Evaluated with: L∞, epsilon 0.1; seed 8." in shown.text["configuration"]
    assert "The parameters of pgd20 are not the same" in read(runs, tmp_path).text["summary"]


def test_attacks_in_another_ball_than_the_run_show_it():
    said = {"class": "Transfer", "source": {"name": "plain"}, "attack": {"class": "PGD", "threat": BALL, "steps": 5}}
    text = formatting.parameters(said, ("Linf", 0.1))
    assert text == "Transfer: source (name plain), attack (PGD: steps 5)"
    assert "PGD: threat (norm Linf, epsilon 0.1), steps 5" in formatting.parameters(said, ("Linf", 0.2))


def test_classes_have_a_sentence_on_the_worst(tmp_path):
    names = ("cat", "dog", "eel", "fox")
    at = table(class_names=names)
    at.predictions["autoattack"][at.labels == 2] = 0
    runs = [make_run(tmp_path / "at", "at", at), make_run(tmp_path / "mart", judged=table(class_names=names))]
    text = read(runs, tmp_path).text["classes"]
    assert "at is least robust on eel (of 4 classes): 0.00% in the worst case, 90.00% natural." in text
    low, high = wilson(0.5, 10)
    assert f"cat 50.00% {low:.1%} to {high:.1%} natural 90.00%" in text
    assert [text.rindex(name) for name in names] == sorted(text.rindex(name) for name in names)  # in label order


@pytest.mark.parametrize(("classes", "shown"), [(20, 20), (21, 20)])
def test_only_the_worst_of_many_classes_are_shown(tmp_path, classes, shown):
    judged = table(classes, 840, worst=1)
    judged.predictions["autoattack"][judged.labels == classes - 1] = 0
    page = read(make_run(tmp_path / "mart", judged=judged), tmp_path)
    assert len(page.find("classes", "th", scope="row")) == shown
    fewer = "Shown are the 20 classes with the lowest worst-case accuracy, of 21."
    assert (fewer in page.text["classes"]) == (shown < classes)
    first = f"class mart {classes - 1} 0.00%" if shown < classes else "class mart 0 "
    assert first in page.text["classes"]


def test_epsilon_draws_a_line_a_band_and_the_ball(shown):
    labels = {each["aria-label"] for each in shown.find("epsilon", "svg", role="img")}
    assert len(shown.find("epsilon", "svg", role="img")) == 2  # wide and narrow
    assert "mart: 90% at 0, 75% at 0.05, 50% at 0.1, 10% at 0.2, 0% at 1." in labels.pop()
    assert "trained and evaluated at 0.1" in shown.text["epsilon"]
    # The ball that contains every image is not drawn: it would squeeze the others together.
    assert "mart 90.0% 75.0% 50.0% 10.0% 0.0%" in shown.text["epsilon"]
    assert "The table continues to 1." in shown.text["epsilon"]
    # Accuracy 0.5 at 0.1, in the middle of the plot, and its interval.
    middle = (52 + svg.NARROW - 26) / 2
    assert any(f"L{middle:g} 162" in path["d"] for path in shown.find("epsilon", "path"))
    ends = {f"{middle:g},{svg.number(47 + 230 * (1 - bound))}" for bound in wilson(0.5, 40)}
    bands = [each["points"].split() for each in shown.find("epsilon", "polygon") if "band" in each["class"]]
    assert len(bands) == 4 and any(ends <= set(band) for band in bands)


def test_epsilon_of_two_norms_takes_two_charts(tmp_path):
    runs = [make_run(tmp_path / "at", "at", flags=""), make_run(tmp_path / "mart", flags="--epsilon=8/255\n")]
    for name in ("evaluation.json", "diagnosis.json"):
        change(runs[0] / name, lambda content: content.get("best", content).update(threat=L2))
    shown = read(runs, tmp_path)
    assert len(shown.find("epsilon", "svg", role="img")) == 4
    assert "epsilon in L2" in shown.text["epsilon"] and "epsilon in L∞" in shown.text["epsilon"]
    assert "trained at 8/255" in shown.text["epsilon"] and "evaluated at 0.5" not in shown.text["epsilon"]  # outside


def distances(examples=40):
    """Returns distances: 4 misclassified, one never fooled, the others from 0.05 to 0.22."""
    return {"fmn": np.array([0.0] * 4 + [*np.linspace(0.05, 0.22, examples - 5)] + [np.inf], "float32")}


def test_epsilon_from_distances(tmp_path):
    shown = read(make_run(tmp_path / "mart", judged=table(distances=distances())), tmp_path)
    text = shown.text["epsilon"]
    assert "on 40 test examples, from the distances of the nearest adversarial images found (FMN: steps 100)." in text
    # 40 - 4 - 11 are still correct at 0.1, 40 - 4 - 21 at 0.15; the table has multiples of 0.1.
    assert "0 0.025 0.05 0.075 0.1 0.15 0.2 0.3 0.4 mart 90.0% 90.0% 87.5% 75.0% 62.5% 37.5% 12.5% 2.5% 2.5%" in text
    assert PGD not in text and "The table continues to 0.4." in text  # the line ends at the largest distance
    lines_ = [each["d"] for each in shown.find("epsilon", "path") if "line" in each.get("class", "")]
    assert [path.count("L") for path in lines_] == [199, 199]
    assert lines_[1].startswith("M52 70L") and lines_[1].endswith("L326 271.2h0")  # 90% of 230 pixels, 2.5%
    assert len(shown.find("epsilon", "circle")) == 2 * 7 + 2  # at the epsilons of the table, and in legends


def test_epsilon_from_distances_counts_as_the_attack_does(tmp_path):
    """An image on the ball's surface counts, although its distance in float32 is larger than 8/255."""
    surface = {"fmn": np.full(40, 8 / 255, "float32")}
    ball = {"norm": "Linf", "epsilon": 8 / 255}
    record = RECORD | {"threat": ball, "attacks": {"fmn": {"class": "FMN", "threat": ball}}}
    judged = dataclasses.replace(table(distances=surface), record=record)
    text = read(make_run(tmp_path / "mart", judged=judged), tmp_path).text["epsilon"]
    assert "mart 100.0% 100.0% 100.0% 100.0% 0.0% 0.0%" in text


def test_epsilon_of_two_kinds_in_one_chart(tmp_path):
    runs = [make_run(tmp_path / "at", "at", table(distances=distances())), make_run(tmp_path / "mart")]
    shown = read(runs, tmp_path)
    text = shown.text["epsilon"]
    assert len(shown.find("epsilon", "svg", role="img")) == 2
    assert "Accuracy of at on 40 test examples, from the distance" in text
    assert f"; of mart on 40 test examples under {PGD}, at each epsilon." in text
    # A curve from distances fills all columns, a measured curve only its own.
    assert "0 0.025 0.05 0.075 0.1 0.15 0.2 0.3 0.4 1 at 90.0% 90.0% 87.5%" in text
    assert "mart 90.0% 75.0% 50.0% 10.0% 0.0%" in text


def test_epsilon_of_distances_in_another_norm_takes_a_chart_of_its_own(tmp_path):
    attacks = RECORD["attacks"] | {"fmn": {"class": "FMN", "threat": L2}}
    judged = dataclasses.replace(table(distances=distances()), record=RECORD | {"attacks": attacks})
    shown = read([make_run(tmp_path / "at", "at", judged), make_run(tmp_path / "mart")], tmp_path)
    text = shown.text["epsilon"]
    assert "epsilon in L2" in text and "epsilon in L∞" in text and "FMN: threat (norm L2, epsilon 0.5)" in text


def test_checks_in_another_ball_than_the_evaluation_say_so(tmp_path):
    run = make_run(tmp_path / "mart")
    change(run / "evaluation.json", lambda content: content["best"].update(threat=L2))
    shown = read([run], tmp_path)
    assert "epsilon in L∞" in shown.text["epsilon"] and "evaluated at 0.5" not in shown.text["epsilon"]
    assert "(on 40 examples, L∞, epsilon 0.1)" in shown.text["checks"]


def test_gap_between_pgd_and_autoattack(shown):
    assert "75.00% → 25.00%" in shown.text["gap"]
    assert "at loses 50.00 points and mart loses 25.00 points" in shown.text["gap"]
    assert "PGD-20 overestimates robustness" in shown.text["gap"]


def test_checks_with_verdict_figure_and_meaning(tmp_path):
    runs = [make_run(tmp_path / "at", "at"), make_run(tmp_path / "mart")]

    def otherwise(content):
        content["checks"][0] |= {"verdict": "flagged", "meaning": "They vanish."}
        content["checks"].pop()

    change(runs[0] / "diagnosis.json", otherwise)
    text = read(runs, tmp_path).text["checks"]
    assert "at: 2 of 2 flagged; mart: 1 of 3 flagged (on 40 examples, L∞, epsilon 0.1)." in text
    assert "gradients not vanishing at: They vanish. mart: They flow. at ! flagged 0.2% exact zeros mart ✓ pas" in text
    assert "forward is deterministic Not looked at. at not run mart - skipped" in text


def test_confusion_shows_the_strongest_attack(shown):
    assert "Under autoattack: 50.00% of 40 examples are classified correctly." in shown.text["confusion"]
    assert "0 predicted as 1: 5 of 10 (50.0%)" in shown.text["confusion"]
    assert len(shown.find("confusion", "rect")) == 2 * (8 + 1)  # eight nonempty cells, and the border


@pytest.mark.parametrize(("classes", "counted"), [(2, True), (12, True), (13, False), (100, False)])
def test_confusion_of_few_and_many_classes(tmp_path, classes, counted):
    run = make_run(tmp_path / "mart", judged=table(classes, 800))
    shown = read(run, tmp_path)
    assert f"{classes} classes" in shown.find("confusion", "svg", role="img")[0]["aria-label"]
    assert len(shown.find("confusion", "rect")) == (2 * classes if counted else 0) + 1
    assert len(shown.find("confusion", "li")) == min(5, classes)


def test_confusion_and_gallery_name_the_classes(tmp_path):
    judged = table(class_names=("airplane", "automobile", "bird", "a" * 30))
    shown = read(make_run(tmp_path / "mart", judged=judged), tmp_path)
    text = shown.text["confusion"]
    assert "airplane predicted as automobile: 5 of 10 (50.0%)" in text
    # Names are at both axes, rotated above the cells, and a long one is cut.
    assert text.count("automobile") == 2 + 2 and text.count(" aaaaaaaaa…") == 2
    assert len([each for each in shown.find("confusion", "text") if "rotate" in each.get("transform", "")]) == 4
    assert "label " + "a" * 30 in shown.text["gallery"] and "✗ predicted bird" in shown.text["gallery"]


def test_counts_stay_in_their_cells(tmp_path):
    run = make_run(tmp_path / "mart", judged=table(10, 4000, class_names=tuple(f"automobile{n}" for n in range(10))))
    cells = read(run, tmp_path).find("confusion", "text", lengthadjust="spacingAndGlyphs")
    assert len(cells) == 20 and all(float(each["textlength"]) < 25 for each in cells)  # 200 in cells of 25 pixels


def test_an_invalid_class_has_no_name(tmp_path):
    with np.load(make_run(tmp_path / "mart", judged=table(class_names=tuple("abcd"))) / "gallery.npz") as file:
        arrays = dict(file)
    np.savez(tmp_path / "mart" / "gallery.npz", **{**arrays, "predicted": [-1, -1]})
    assert "✗ predicted -1" in read(tmp_path / "mart", tmp_path).text["gallery"]


def test_heat_map_cells():
    drawn = heatmap.heatmap("", np.array([[3, 1], [0, 0]]), "ab", width=svg.NARROW)
    assert f'class="right" fill-opacity="{heatmap.level(0.75)}"' in drawn
    assert f'class="wrong" fill-opacity="{heatmap.level(0.25)}"' in drawn
    assert drawn.count("<rect") == 3  # a class without examples has no cells
    levels = [heatmap.level(share) for share in np.linspace(0, 1, 101)]
    assert levels == sorted(levels) and levels[0] == 0 and levels[-1] == 1


@pytest.mark.parametrize("channels", [1, 3])
def test_gallery(tmp_path, channels):
    shown = read(make_run(tmp_path / "mart", channels=channels), tmp_path)
    assert "label 3 natural ✓ predicted 3 perturbation 5 times adversarial ✗ predicted 2" in shown.text["gallery"]
    assert "magnified 5 times ; epsilon is 0.1." in shown.text["gallery"] and PGD in shown.text["gallery"]
    images = shown.find("gallery", "img", **{"class": "pixels", "width": "5", "height": "6"})
    assert len(images) == 6
    assert images[1]["alt"] == "mart, example 1: perturbation, 5 times"
    code = images[1]["src"].removeprefix("data:image/png;base64,")
    magnified = tf.io.decode_png(tf.io.decode_base64(code.replace("+", "-").replace("/", "_").rstrip("="))).numpy()
    assert magnified.shape == (6, 5, channels)
    assert (magnified[0, 0] == 255).all() and (magnified[0, 1] == 0).all() and (magnified[1:] == 128).all()


def test_large_images_are_not_pixelated():
    assert "class" not in picture(np.zeros((96, 20, 3)), "") and 'class="pixels"' in picture(np.zeros((95, 20, 3)), "")


def test_gallery_without_change_and_without_examples(tmp_path):
    runs = [make_run(tmp_path / "at", "at"), make_run(tmp_path / "mart")]
    with np.load(runs[0] / "gallery.npz") as file:
        arrays = dict(file)
    np.savez(runs[0] / "gallery.npz", **{**arrays, "adversarial": arrays["images"]})
    none = {name: values[:0] if values.ndim else values for name, values in arrays.items()}
    np.savez(runs[1] / "gallery.npz", **none)
    text = read(runs, tmp_path).text["gallery"]
    assert "magnified 1 times" in text and "The gallery of mart : not measured." in text


def test_configuration_highlights_differences(shown):
    assert "--method=mart --epsilon=0.1" in shown.text["configuration"]
    assert "Evaluated with: L∞, epsilon 0.1; seed 7; keras 3.15.1." in shown.text["configuration"]
    assert len(shown.find("configuration", "mark")) == 2


def test_missing_data_name_the_command_to_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bare = tmp_path / "my runs" / "at"
    bare.mkdir(parents=True)
    (bare / "flags.cfg").write_text("--method=at\n")
    runs = ["my runs/at", make_run(tmp_path / "mart")]
    for shown in (read(runs[0], tmp_path), read(runs, tmp_path)):
        assert tuple(shown.text) == SECTIONS
        start = "python -m keras_mart.main"
        for part in ("summary", "attacks", "confusion", "configuration"):
            assert f"{start} --mode=evaluate '--workdir=my runs/at'" in shown.text[part]
        for part in ("epsilon", "checks", "gallery"):
            assert f"{start} --mode=report '--workdir=my runs/at'" in shown.text[part]
        assert "--mode=evaluate '--workdir=my runs/at' --attacks=pgd20,autoattack" in shown.text["gap"]
        training = f"{start} --mode=train '--workdir=my runs/at' '--flagfile=my runs/at/flags.cfg' --resume"
        assert training in shown.text["curves"]


def test_the_command_for_a_missing_attack_includes_those_measured(tmp_path):
    run = make_run(tmp_path / "mart")

    def without_autoattack(content):
        accuracy = content["best"]["accuracy"]
        content["best"]["accuracy"] = {"natural": accuracy["natural"], "cw": 0.7, "pgd20": 0.75, "worst_case": 0.7}

    change(run / "evaluation.json", without_autoattack)
    text = read(run, tmp_path).text["gap"]
    assert "AutoAttack of mart : not measured." in text and "--attacks=cw,pgd20,autoattack" in text


def test_titles(tmp_path):
    one, two, three = (make_run(tmp_path / folder) for folder in ("a/x", "b/y", "c/y"))
    text = report([one, two], tmp_path / "r.html").read_text()
    assert "<h1>mart (x) and mart (y)</h1>" in text
    text = report([two, three], tmp_path / "r.html").read_text()
    assert f"<h1>mart ({two}) and mart ({three})</h1>" in text
    text = report({"ours": one, "theirs": two}, tmp_path / "r.html").read_text()
    assert "<h1>ours and theirs</h1>" in text
    (one / "flags.cfg").write_text("--epochs=3\n")
    assert "<h1>x</h1>" in report(str(one), tmp_path / "r.html").read_text()


def test_text_is_escaped(tmp_path):
    run = make_run(tmp_path / "mart", flags="--dataset=folder:<b>&\"'\n")
    evil = "<script>alert('&\"')</script>"

    def poison(content):
        content["best"]["attacks"][evil] = {"class": evil, evil: evil}
        content["best"]["versions"][evil] = evil
        content["best"]["accuracy"][evil] = 0.1

    change(run / "evaluation.json", poison)
    change(run / "diagnosis.json", lambda content: content["checks"][0].update(name=evil, figure=evil, meaning=evil))
    change(run / "diagnosis.json", lambda content: content["checks"][0].update(verdict='"><i>'))
    change(run / "diagnosis.json", lambda content: content["curve"].update(attack=evil))
    judged = table()
    judged.predictions[evil] = judged.labels * 0
    dataclasses.replace(judged, class_names=(evil,) * 4).save(run / "best.npz")
    shown = read({evil: run}, tmp_path)
    assert not [name for _, name, attributes in shown.elements if name == "script" or "<" in name + "".join(attributes)]
    assert all(evil in shown.text[part] for part in SECTIONS)
    assert "folder:<b>&\"'" in shown.text["configuration"]


def test_markup():
    assert tag("p", "a<b", ["&", None, Markup("<i>")], 3, class_="x", aria_label='"', hidden=None) == (
        '<p class="x" aria-label="&quot;">a&lt;b&amp;<i>3</p>'
    )
    assert tag("p", Markup("<i>") + "<b>") == "<p>&lt;i&gt;&lt;b&gt;</p>"  # joined text is no longer markup


def test_formatting():
    assert [formatting.epsilon(size) for size in (8 / 255, 0.2, 0.15, np.float32(0.2), 0.3, 0)] == [
        "8/255", "0.2", "0.15", "0.2", "0.3", "0",
    ]  # fmt: skip
    assert formatting.listing(["a"]) == "a" and formatting.listing("abc") == "a, b and c"
    assert formatting.count(16000) == "16,000" and formatting.count(23_400_000) == "23 million"


def test_ticks():
    assert svg.ticks(0, 0.3, 6) == [0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3]
    assert svg.ticks(1, 12, 6, least=1) == [2, 4, 6, 8, 10, 12]
    assert svg.ticks(1, 2, 6, least=1) == [1, 2]
    assert svg.ticks(-3, 1, 3) == [-2, 0]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda run: (run / "flags.cfg").unlink(), r"must contain flags.cfg. Received: .*mart"),
        (
            lambda run: (run / "flags.cfg").write_text("--method=at,mart\n"),
            r"must contain flags.cfg. Received: .*mart.at",
        ),
        (lambda run: (run / "evaluation.json").write_text('{"best": {'), r"be readable. Received: .*evaluation.json"),
        (
            lambda run: (run / "evaluation.json").write_text("[]"),
            r"must be readable. Received: .*not contain a JSON object",
        ),
        (lambda run: (run / "diagnosis.json").write_text("nonsense"), r"must be readable. Received: .*diagnosis.json"),
        (lambda run: (run / "history.csv").write_text("epoch,loss\n1,much\n"), r"must be readable. Received: .*much"),
        (lambda run: (run / "best.npz").write_bytes(b"PK\3\4"), r"must be readable. Received: .*mart"),
        (lambda run: (run / "gallery.npz").write_bytes(b""), r"must be readable. Received: .*mart"),
    ],
)
def test_damaged_runs(tmp_path, spoil, message):
    run = make_run(tmp_path / "mart")
    spoil(run)
    with pytest.raises(ValueError, match=message):
        report(run, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_a_directory_of_several_methods_stands_for_all(tmp_path):
    root = tmp_path / "digits"
    for method in ("at", "mart"):
        make_run(root / method, method)
    (root / "flags.cfg").write_text("--method=at,mart\n")
    page = report(root, tmp_path / "report.html").read_text()
    assert page == report([root / "at", root / "mart"], tmp_path / "report.html").read_text()
    with pytest.raises(ValueError, match=r"must be of one method. Received: .*digits, which contains .*at, .*mart"):
        report({"both": root}, tmp_path / "report.html")


@pytest.mark.parametrize("runs", [[], {}])
def test_no_runs(tmp_path, runs):
    with pytest.raises(ValueError, match=r"at least one run directory. Received: "):
        report(runs, tmp_path / "report.html")


def test_path_is_made_and_returned_and_must_be_writable(tmp_path):
    run = make_run(tmp_path / "mart")
    path = report(run, str(tmp_path / "new" / "report.html"))
    assert path == tmp_path / "new" / "report.html" and path.read_text().startswith("<!DOCTYPE html>")
    for wrong in (run / "flags.cfg" / "report.html", tmp_path / "new"):
        with pytest.raises(ValueError, match=r"`path` must be a file that can be written. Received: "):
            report(run, wrong)
    assert [each.name for each in tmp_path.iterdir() if "unfinished" in each.name] == []


def test_an_interrupted_report_leaves_the_old_one(tmp_path, monkeypatch):
    run = make_run(tmp_path / "mart")
    path = report(run, tmp_path / "out" / "report.html")
    old = path.read_text()

    def fail(self, target):
        assert self.read_text() == old  # the new file is complete before it replaces the old one
        raise OSError("no space left")

    monkeypatch.setattr(pathlib.Path, "replace", fail)
    with pytest.raises(ValueError, match="no space left"):
        report(run, path)
    assert path.read_text() == old and list(path.parent.iterdir()) == [path]


def test_the_same_runs_give_the_same_file(tmp_path):
    run = make_run(tmp_path / "mart")
    assert report(run, tmp_path / "a.html").read_bytes() == report(run, tmp_path / "b.html").read_bytes()


def test_the_file_is_self_contained(tmp_path):
    run = make_run(tmp_path / "mart", flags="--dataset=folder:https://example.com/x\n")
    path = report(run, tmp_path / "report.html")
    assert "default-src 'none'" in path.read_text().replace("&#x27;", "'")
    assert not re.search(r"url\(|@import|<script|<link|<iframe", path.read_text())
    for _, _, attributes in Page(path.read_text()).elements:
        for name in ("src", "href", "srcset", "action", "data"):
            assert attributes.get(name, "#").startswith(("#", "data:image/png;base64,"))


def test_page_is_accessible(shown):
    elements = shown.elements
    assert ("lang", "en") in [pair for _, name, attributes in elements if name == "html" for pair in attributes.items()]
    ids = [attributes["id"] for *_, attributes in elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [attributes["href"] for _, name, attributes in elements if name == "a"]
    assert links == [f"#{name}" for name in SECTIONS]
    for _, name, attributes in elements:
        assert name != "img" or attributes["alt"]
        assert name != "th" or attributes["scope"] in ("row", "col")
        if name == "svg":
            assert attributes.get("aria-hidden") == "true" or (attributes["role"] == "img" and attributes["aria-label"])


def luminance(colour):
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in colour]
    return np.dot([0.2126, 0.7152, 0.0722], linear)


def contrast(first, second):
    """Returns the WCAG contrast ratio of two colours of three values in [0, 1]."""
    low, high = sorted(map(luminance, (first, second)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_colours_stand_out(theme):
    style = page.STYLE.read_text()
    block = re.findall(r":root \{(.*?)\}", style, re.DOTALL)[theme]
    found = dict(re.findall(r"--([\w-]+): #([0-9a-f]{6});", block))
    colours = {name: np.array([int(code[place : place + 2], 16) / 255 for place in (0, 2, 4)])
               for name, code in found.items()}  # fmt: skip
    texts = [
        *(("ink", ground) for ground in ("page", "card", "track")),
        *(("muted", ground) for ground in ("page", "card", "skipped")),
        ("link", "page"), ("note-ink", "note"), ("good", "card"), ("bad", "card"), ("good", "passed"),
        ("bad", "flagged"),
    ]  # fmt: skip
    for text, ground in texts:
        assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    for kind in ("right", "wrong"):
        for _, opacity in heatmap.LEVELS:
            cell = opacity * colours[kind] + (1 - opacity) * colours["card"]
            text = colours["turned" if opacity > heatmap.TEXT_TURNS else "ink"]
            assert contrast(text, cell) >= 4.5, (kind, opacity)
    for line in ("natural", *(f"run-{index}" for index in range(8))):
        assert min(contrast(colours[line], colours[ground]) for ground in ("page", "card")) >= 3, line


# Measures the page in frames of both widths. Nothing may be wider than the page except content that scrolls in its own
# box, and a chart's text must be legible and lie within the chart.
MEASURE = """
const measure = frame => {
  const page = frame.contentDocument, root = page.documentElement, wrong = [];
  if (root.scrollWidth > root.clientWidth) wrong.push(`the page is ${root.scrollWidth} wide`);
  const visible = [...page.body.querySelectorAll("*")].filter(each => each.getClientRects().length);
  for (const each of visible) {
    const box = each.getBoundingClientRect(), part = each.closest("section")?.id;
    if (box.right > root.clientWidth + 0.5 && !each.closest(".scroll table"))
      wrong.push(`${part}: ${each.tagName} ends at ${box.right}`);
    if (each.tagName === "text") {
      const svg = each.ownerSVGElement, chart = svg.getBoundingClientRect();
      const size = parseFloat(frame.contentWindow.getComputedStyle(each).fontSize) * svg.getScreenCTM().a;
      const outside = box.left < chart.left - 1 || box.right > chart.right + 1 || box.top < chart.top - 1;
      if (outside || box.bottom > chart.bottom + 1 || size < 11)
        wrong.push(`${part}: text "${each.textContent}" of ${size} pixels leaves its chart`);
    }
  }
  for (const each of page.querySelectorAll(".scroll"))
    if (each.scrollWidth > each.clientWidth && frame.contentWindow.getComputedStyle(each).overflowX !== "auto")
      wrong.push("a wide table does not scroll");
  const height = name => page.getElementById(name)?.getBoundingClientRect().height ?? 0;
  return {width: frame.contentWindow.innerWidth, wrong, heights: SECTIONS.map(height)};
};
addEventListener("load", () => {
  const found = [...document.querySelectorAll("iframe")].map(measure);
  document.body.dataset.found = JSON.stringify(found);
});
"""


def measured(text, folder):
    """Returns the findings of `MEASURE` in frames of 1280 and 400 pixels."""
    frames = "".join(f"<iframe srcdoc='{html.escape(text)}' style='width:{width}px;border:0'></iframe>"
                     for width in (1280, 400))  # fmt: skip
    script = MEASURE.replace("SECTIONS", json.dumps(SECTIONS))
    wrapper = f'<meta charset="utf-8"><body>{frames}<script>{script}</script>'
    (folder / "frames.html").write_text(wrapper, encoding="utf-8")
    command = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}",
               "--virtual-time-budget=5000", "--dump-dom", (folder / "frames.html").as_uri()]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return json.loads(html.unescape(re.search(r'data-found="([^"]*)"', done.stdout).group(1)))


@pytest.mark.skipif(BROWSER is None, reason="no browser")
def test_page_fits_wide_and_narrow_windows(tmp_path):
    methods = ("standard", "at", "alp", "clp", "trades", "mma")
    runs = {method: make_run(tmp_path / method, method, table(2 + place)) for place, method in enumerate(methods)}
    long = f"--dataset=folder:{'a' * 200}\n--epsilon=16/255\n"
    runs["a title of many words that does not fit " * 2] = make_run(tmp_path / "m", "mart", table(100, 900), 3, long)
    named = table(10, 4000, class_names=tuple(f"{n} automobiles" for n in range(10)), distances=distances(4000))
    runs["named"] = make_run(tmp_path / "named", judged=named)
    runs["x" * 120] = make_run(tmp_path / "y" / ("z" * 100), "mart")
    (runs["mma"] / "gallery.npz").unlink()
    change(runs["at"] / "evaluation.json", lambda content: content["best"]["accuracy"].update({"v" * 90: 0.5}))
    path = report(runs, tmp_path / "report.html")
    found = measured(path.read_text(encoding="utf-8"), tmp_path)
    assert [each["width"] for each in found] == [1280, 400]
    for each in found:
        assert each["wrong"] == []
        assert min(each["heights"]) > 60
