"""Tests experiments/report.py, which generates docs/reproduction.md from the results."""

import json
import pathlib
import sys
import types

import numpy as np
import pytest

from experiments import cells, paper, published, report, start, whitebox
from keras_mart import networks

ROOT = pathlib.Path(__file__).parents[1]
(WHITE_BOX_SECTION,) = (each for each in report.SECTIONS if each.module is whitebox)


def record(seed=0, history=(), lost=0.0, flags=None, **evaluations):
    """Returns a run's record as a study writes it.

    Args:
        seed: of the run.
        history: validation accuracy of each epoch.
        lost: difference in accuracy between the best and the last checkpoint.
        flags: {evaluation: flags}.
        evaluations: {evaluation: (examples, {attack: accuracy})}.
    """
    evaluated = {}
    for name, (examples, accuracy) in evaluations.items():
        best, last = (
            {attack: packed(value - less, examples) for attack, value in accuracy.items()} for less in (0.0, lost)
        )
        both = {"best": {"examples": examples}, "last": {"examples": examples}}
        evaluated[name] = {"flags": (flags or {}).get(name, {}), **both, "outcomes": {"best": best, "last": last}}
    return {
        "flags": {"dataset": "npz:somewhere/mnist-12000.npz", "epochs": 2, "seed": seed}, "seed": seed, "jobs": 2,
        "machine": {"cpu": "a CPU", "cores": 2}, "seconds": {"train": 3600, **dict.fromkeys(evaluations, 90)},
        "history": [
            {"epoch": 1.0 + n, "loss": 2.0, "adversarial_accuracy": 0.5, "val_pgd20_accuracy": value}
            for n, value in enumerate(history)
        ],
        "evaluations": evaluated,
    }  # fmt: skip


def correct(accuracy, examples):
    """Returns [examples] booleans, of which the first `accuracy * examples` are true."""
    return np.arange(examples) < round(accuracy * examples)


def packed(accuracy, examples):
    return np.packbits(correct(accuracy, examples)).tobytes().hex()


def white_box(seed, pgd20, autoattack=None, lost=0.0):
    evaluations = {"paper": (100, {"natural": 0.9, "fgsm": 0.8, "pgd20": pgd20, "cw": 0.6})}
    if autoattack is not None:
        evaluations["autoattack"] = (50, {"natural": 1.0, "pgd20": autoattack + 0.2, "autoattack": autoattack})
    return record(seed, (0.1, None, pgd20), lost, whitebox.EVALUATIONS, **evaluations)


WHITE_BOX = {
    "trades-0": white_box(0, 0.5),
    "mart-0": white_box(0, 0.6, 0.4),
    "mart-1": white_box(1, 0.7, 0.5),
}
STUDIES = {
    "whitebox": WHITE_BOX,
    "figure1": {
        f"natural-{chosen}-{seed}": record(seed, (0.2,), pgd20=(100, {"natural": 0.5, "pgd20": accuracy}))
        for chosen, accuracies in {"misclassified": (0.3, 0.2), "correct": (0.35, 0.4)}.items()
        for seed, accuracy in enumerate(accuracies)
    },
    "wide_resnet": {
        "flags": {"depth": 10},
        "machine": {"cpu": "a CPU"},
        "seconds of each step": [1.5, 2.0],
        "parameters": 46160,
    },
}


# Results that only the other studies' tables and pictures read.
MORE = STUDIES | {
    "figure2": {
        name: record(history=(0.2, 0.3), pgd20=(100, {"natural": 0.5, "pgd20": 0.4}))
        for name in ("mart-0", "ce-0", "share-0.5-0", "trades-beta-2-0")
    },
    "start": {
        run.name: record(history=(0.1,)) | {"flags": run.flags}
        for run in start.runs(whitebox.recipe("npz:mnist.npz", 10))
        if run.name == "sgd-0.3-0"
    },
    "unlabelled": {
        "labeller": record() | {"labels": {"images": 200, "right": 190}},
        "all": record(history=(0.1, 0.4), paper=(100, {"natural": 0.9, "pgd20": 0.5})),
    },
}
MORE["start"]["sgd-0.3-0"]["history"][0] |= {"loss": 2.3125, "adversarial_accuracy": 0.125, "val_pgd20_accuracy": 0.25}
MORE["unlabelled"]["all"]["history"][-1]["adversarial_accuracy"] = 0.75


def section(text, title):
    return text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def of(*accuracies, examples=100):
    """Returns {seed: `Value`}."""
    return {seed: cells.Value(correct(each, examples)) for seed, each in enumerate(accuracies)}


def test_a_cell_is_a_mean_with_its_range_or_one_run_with_its_interval():
    assert cells.cell(of(0.5)) == "50.00 [40.4, 59.6]"  # Wilson's textbook interval of 50 in 100
    assert cells.cell(of(0.5, 0.6, 0.76)) == "62.00 (50.00 to 76.00)"
    assert cells.cell({}) == "-"


def test_differences_are_of_runs_with_the_same_seed():
    ours, theirs = of(0.6, 0.75), of(0.5, 0.45, 0.9)
    assert cells.difference(ours, theirs) == "+20.00 (+10.00 to +30.00)"
    assert cells.difference({5: ours[0]}, theirs) == "-"
    assert cells.difference({0: ours[0]}, theirs).startswith("+10.00 [")


def test_intervals_of_differences_compare_image_by_image():
    def interval(mean, squares):  # with two pseudo-images, whose differences cancel and whose squares add up to 1
        centre = 100 * mean / 102
        half = 1.96 * ((squares + 1) / 102 - (mean / 102) ** 2) ** 0.5 / 102**0.5
        return f"[{centre - 100 * half:+.1f}, {centre + 100 * half:+.1f}]"

    # 10 of 100 images are gained.
    assert cells.difference(of(0.6), of(0.5)) == f"+10.00 {interval(10, 10)}"
    # Over two seeds, images 50 to 59 gain 1 and 60 to 69 gain 1/2.
    both = cells.difference(of(0.6, 0.7), of(0.5, 0.5), interval=True)
    assert both == f"+15.00 (+10.00 to +20.00) {interval(15, 12.5)}"
    assert cells.difference(of(0.5), of(0.5)) == f"+0.00 {interval(0, 0)}"


def test_differences_are_of_the_same_images():
    assert cells.difference(of(0.6), of(0.5, examples=50)) == "-"


def test_the_white_box_table_by_hand():
    text = section(report.page(STUDIES), "The white-box table")
    lines = text.splitlines()
    # 65 is the mean of 60 and 70, 45 of 40 and 50. AutoAttack's natural 100% is of fewer images, and not used.
    everywhere = "90.00 (90.00 to 90.00) | 80.00 (80.00 to 80.00) | 65.00 (60.00 to 70.00) | 60.00 (60.00 to 60.00)"
    assert f"| MART | {everywhere} | 45.00 (40.00 to 50.00) |" in lines
    assert sum(line.startswith("| TRADES | 90.00 [82.6, 94.5] |") and line.endswith(" | - |") for line in lines) == 1
    assert "| test images | 100 | 100 | 100 | 100 | 50 |" in lines
    assert not [line for line in lines if line.startswith(("| Standard |", "| MMA | 9"))][1:]
    assert "| MART | 98.74 (-8.74) | 97.87 (-17.87) | 96.48 (-31.48) | 96.10 (-36.10) | recalled |" in lines
    assert "| AT | 99.11 | 97.17 | 94.62 | 94.25 | recalled |" in lines
    assert "PGD-20 minus AutoAttack, best checkpoint: MART +20.00 (+20.00 to +20.00) [" in text
    assert not [line for line in lines if line.startswith("| MART minus TRADES | +1")]  # TRADES lacks AutoAttack
    both = report.page({"whitebox": {**WHITE_BOX, "trades-0": white_box(0, 0.5, 0.3)}})
    (lead,) = [line for line in both.splitlines() if line.startswith("| MART minus TRADES | +10.00 [")]
    assert lead.endswith(" | 1 |")
    assert f"Runs: 2 of {len(WHITE_BOX_SECTION.runs)} are complete." in text.replace("\n", " ")
    assert "train 3.0 h, paper 4 min, autoattack 3 min; in total 3.1 h, 2 at a time" in text.replace("\n", " ")
    assert "dataset mnist-12000, epochs 2" in text and "images/whitebox.png" in text


def test_the_last_checkpoint_is_shown_where_it_is_not_the_best():
    results = {**WHITE_BOX, "mart-1": white_box(1, 0.7, 0.5, lost=0.1)}
    text = section(report.page({"whitebox": results}), "The white-box table")
    of_last = text.partition("MNIST, last checkpoint, where it is not the best:")[2].partition("\n\nThe last")[0]
    # 85 is the mean of 90 and 80, 60 of 60 and 60.
    assert "| MART | 85.00 (80.00 to 90.00) | 75.00 (70.00 to 80.00) | 60.00 (60.00 to 60.00) |" in of_last
    assert "TRADES" not in of_last
    text = text.replace("\n", " ")
    assert "The last checkpoint is the best in 2 of 3 runs." in text
    assert "second-last validation to the last: TRADES +40.00, MART +55.00." in text
    assert "where it is not the best" not in report.page(STUDIES)


def test_the_cifar_table_compares_ours_with_the_paper_and_the_reruns():
    text = section(report.page({}), "The CIFAR-10 table")
    rows = [line for line in text.splitlines() if line.startswith("| MART,")]
    assert rows[:2] == [
        "| MART, paper | 83.07 | 65.65 | 55.57 | 54.87 | - |",
        "| MART, public reruns | - | - | - | - | 47.49 to 47.83 |",
    ]
    assert rows[2:] == [f"| MART, ours, {which} |{' not run yet |' * 5}" for which in ("best", "last")]
    assert "| MART minus TRADES | +5.32 | -1.96 to -0.56 | paper, recalled, public reruns |" in text.splitlines()
    evaluations = {"paper": (1000, {"natural": 0.84, "fgsm": 0.65, "pgd20": 0.55, "cw": 0.5})}
    partial = section(
        report.page({"cifar": {"mart-0": record(history=(0.2,), lost=0.1, **evaluations)}}), "The CIFAR-10 table"
    )
    assert "| MART, ours, best, minus these | +0.93 | -0.65 | -0.57 | -4.87 | - |" in partial.splitlines()
    assert "| MART, ours, last | 74.00 [71.2, 76.6] |" in partial and "Not run yet." not in partial
    evaluations["autoattack"] = (1000, {"natural": 0.84, "pgd20": 0.55, "autoattack": 0.48})
    complete = section(report.page({"cifar": {"mart-0": record(history=(0.2,), **evaluations)}}), "The CIFAR-10 table")
    # 47.66 is the midpoint of 47.49 and 47.83.
    assert "| -4.87 | +0.34 (+0.17 to +0.51) |" in complete and "| test images | 1,000 |" in complete
    assert "Runs: 0 of 5 are complete." in complete.replace("\n", " ")  # these were evaluated with other flags


def test_published_networks_are_compared_with_their_published_accuracies():
    evaluations = {"natural": (100, {"natural": 0.98}), "autoattack": (50, {"natural": 1.0, "autoattack": 0.84})}
    (table,) = report.tables.published({"published": {"fgsm.pth": record(**evaluations)}})
    rows = [row for row in table.splitlines() if "fgsm.pth" in row]
    assert rows == [
        "| fgsm.pth | natural | 98.50 | 98.00 [93.0, 99.4] | -0.50 | 100 |",
        "| fgsm.pth | PGD-50, worst of 10 restarts | 88.77 | not run yet |  |  |",
        "| fgsm.pth | AutoAttack | 82.93 | 84.00 [71.5, 91.7] | +1.07 | 50 |",
    ]
    assert "| pgd_madry.pth | natural | - | not run yet |  |  |" in table


def test_published_networks_have_the_shapes_of_their_files(tmp_path):
    """The kernels of resnet2b.pth and fgsm.pth in the files' order."""
    for network, kernels in (
        (published.small_resnet(8, 1), [
            (8, 3, 3, 3), (16, 8, 3, 3), (16, 16, 3, 3), (16, 8, 1, 1), (16, 16, 3, 3), (16, 16, 3, 3), (100, 1024),
            (10, 100),
        ]),
        (published.wong(), [(16, 1, 4, 4), (32, 16, 4, 4), (100, 1568), (10, 100)]),
    ):  # fmt: skip
        networks.save_torch(network, tmp_path / "network.pt")
        tensors = networks.torch_files.read(tmp_path / "network.pt")
        assert [value.shape for name, value in tensors.items() if name.endswith("weight")] == kernels


def test_a_run_that_was_evaluated_with_other_flags_is_not_complete():
    other = white_box(0, 0.6, 0.4)
    other["evaluations"]["autoattack"]["flags"] = {"attacks": "pgd20,autoattack", "examples": 50}
    text = report.page({"whitebox": {**WHITE_BOX, "mart-0": other}})
    assert f"Runs: 1 of {len(WHITE_BOX_SECTION.runs)} are complete." in text.replace("\n", " ")


def test_pgd20_minus_autoattack_is_of_the_same_images():
    mart = record(paper=(100, {"pgd20": 0.9}), autoattack=(50, {"pgd20": 0.8, "autoattack": 0.7}))
    text = report.page({"whitebox": {"mart-0": mart}})
    assert "PGD-20 minus AutoAttack, best checkpoint: MART +10.00 [" in text.replace("\n", " ")
    assert "| MART | - | - | 90.00 [" in text  # of more images


def test_figure_1_pairs_the_seeds():
    lines = section(report.page(STUDIES), "Figure 1").splitlines()
    assert "| S- unperturbed | 50.00 (50.00 to 50.00) | 25.00 (20.00 to 30.00) | - |" in lines
    (pair,) = [line for line in lines if line.startswith("| unperturbed | -5.00, -20.00 | ")]
    assert pair.split(" | ")[2].startswith("-12.50 (-20.00 to -5.00) [") and pair.endswith("] | - | - |")


def test_figure_1_gives_the_split_and_compares_c_with_its_control():
    classes = {"misclassified": [20, 10], "correct": [5, 25]}
    split = {"training examples": 90, "misclassified": 30, "of each class": classes}
    results = {**STUDIES["figure1"], "at-0": record(history=(0.2,)) | {"split": split}}
    results["forwarded-0"] = record(history=(0.2,), pgd20=(100, {"natural": 0.5, "pgd20": 0.45}))
    results["regularised-misclassified-0"] = record(history=(0.2,), pgd20=(100, {"natural": 0.5, "pgd20": 0.55}))
    text = section(report.page({"figure1": results}), "Figure 1").replace("\n", " ")
    assert "misclassifies 30 of 90 training images (33.3%). By class, S- has 30 (20, 10); S+ has 30 (5, 25)." in text
    assert "| AT, natural images too | 50.00 [40.4, 59.6] | 45.00 [35.6, 54.8] | - |" in text
    assert "| S- with KL(p, q) | 50.00 [40.4, 59.6] | 55.00 [45.2, 64.4] | - | +10.00 [" in text


def test_figure_2_takes_mart_itself_for_share_1_and_its_own_beta():
    def evaluated(accuracy):
        return record(history=(0.2,), pgd20=(100, {"natural": 0.5, "pgd20": accuracy}))

    results = {
        "mart-0": evaluated(0.4),
        "share-0.25-0": evaluated(0.3),
        "no_kl-0": evaluated(0.35),
        "no_weight_no_kl-0": evaluated(0.2),
    }
    results |= {"mart-beta-2-0": evaluated(0.38), "trades-beta-2-0": evaluated(0.28)}
    lines = section(report.page({"figure2": results}), "Figure 2").splitlines()
    rows = {line.split(" | ")[0].strip("| "): line.split(" | ")[2][:5] for line in lines if line.startswith("| ")}
    expected = {"0": "20.00", "0.25": "30.00", "1": "40.00", "MART 5": "40.00", "MART 2": "38.00", "TRADES 2": "28.00"}
    assert {name: rows[name] for name in expected} == expected
    (without,) = [line for line in lines if line.startswith("| without KL |")]
    assert "| -5.00 [" in without
    assert rows["2"].startswith("+10.0")


def test_the_black_box_table_includes_the_same_networks_white_box_accuracy():
    attacks = {"natural": 0.95} | {f"transfer-{attack}": 0.85 for attack in ("fgsm", "pgd10", "pgd20", "cw")}
    results = {"mart-0": record(standard=(100, attacks))} | {"standard-100": record(history=(0.2,))}
    text = section(report.page({"whitebox": WHITE_BOX, "blackbox": results}), "The black-box table")
    cells = " | ".join(["95.00 [88.8, 97.8]", *["85.00 [76.7, 90.7]"] * 4])
    assert f"| MART | {cells} | 65.00 (60.00 to 70.00) |" in text.splitlines()
    assert "Made on the network of Standard" in text and "Made on the network of AT" not in text


def test_the_tables_of_the_other_studies():
    text = report.page(MORE)
    start_table = section(text, "The start of training on MNIST")
    assert "| AT, SGD, rate 0.01, epsilon 0.3 | 2.312, 12.5 |  |  |  |  | 25.00 |" in start_table
    assert (
        "| MART, SGD, rate 0.03, epsilon 0.3 | 2.000, 50.0 | 2.000, 50.0 | 2.000, 50.0 |  |  | 60.00 |" in start_table
    )
    assert "Flags: depth 10." in section(text, "The large network")
    unlabelled = section(text, "Unlabelled data").replace("\n", " ")
    assert "95.00% of the labels that the standard network predicts for 200 images are correct." in unlabelled
    assert "in validation (PGD-20): all with true labels 75.00 and 40.00." in unlabelled


def test_missing_studies_are_listed_with_their_commands():
    text = report.page({})
    for each in report.SECTIONS:
        title = report.description(each.module.__doc__).title
        part = section(text, title).partition("Not run yet.")[2]
        assert f"python -m experiments.{each.name} " in part
    assert "images/" not in text and "Runs:" not in text
    started = report.page({each.name: {"mart-0": record()} for each in report.SECTIONS if each.runs})
    assert started.count("Runs: 0 of ") == sum(bool(each.runs) for each in report.SECTIONS)
    assert "images/" not in started


def test_a_docstring_and_the_findings_make_a_section(monkeypatch):
    module = types.ModuleType("experiments.whitebox")
    module.__doc__ = (
        "A table: all of it.\n\nPaper: one\nclaim. Ours: less.\n\nAnd more.\n\n    a command\n\nResult: r.\n"
    )
    module.FINDINGS = "\nMuch the same.\n"
    monkeypatch.setattr(report, "SECTIONS", [WHITE_BOX_SECTION._replace(module=module)])
    text = section(report.page(STUDIES), "A table")
    assert text.startswith("\nAll of it.\n\n**Paper:** one claim.\n\n**Ours:** less.\n\nAnd more.\n\n![")
    assert "\n\n**Findings:** Much the same.\n\n" in text and text.endswith("```\na command\n```\n")


def test_how_certain_each_cited_figure_is():
    cited = [*paper.MNIST.values(), *paper.CIFAR10.values(), *paper.AUTOATTACK.values(), paper.BLACK_BOX]
    cited += [paper.UNLABELLED, paper.UNLABELLED_AUTOATTACK]
    assert {each.certainty for each in cited} == paper.CERTAINTY.keys()
    text = section(report.page({"unlabelled": {"all": record()}}), "Unlabelled data").replace("\n", " ")
    assert "natural 87.50 (paper), PGD-20 65.04 (paper), AutoAttack 56.29 (RobustBench)." in text


def test_the_page_is_generated_from_the_results():
    given = report.page(report.read(ROOT / "experiments" / "results"))
    assert (ROOT / "docs" / "reproduction.md").read_text() == given, "python -m experiments.report writes it"


def test_the_command_writes_page_and_pictures(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    for name, results in MORE.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(results))
    monkeypatch.setattr(sys, "argv", ["report", f"--results={tmp_path}", f"--docs={tmp_path / 'docs'}"])
    report.main()
    assert (tmp_path / "docs" / "reproduction.md").read_text() == report.page(MORE)
    pictures = sorted(path.name for path in (tmp_path / "docs" / "images").iterdir())
    assert pictures == ["figure1.png", "figure2.png", "whitebox.png"]
