"""The steps of an evaluation, and its results after each of them."""

import dataclasses
import json
from typing import Any, NamedTuple

import numpy as np

from keras_mart import distribution
from keras_mart.attacks.survivors import AttackState, CallableAttack, stages
from keras_mart.evaluation.table import Table
from keras_mart.threats import ROUNDING

NATURAL = "natural"


class Step(NamedTuple):
    """One round of an attack, or the natural predictions.

    Attributes:
        name: name of the attack, a row of the table.
        row: name of the stage's row; equal to `name` if the attack has only one stage.
        attack: the attack that the stage runs.
        seeds: [examples, 2] integers.
        number, rounds: index of the round in its stage, from 0, and the stage's number of rounds.
        is_first: whether this is the attack's first round.
        skips_misclassified: whether the attack skips examples that are misclassified without it.
        epsilon: for an attack that looks for the nearest adversarial image in the widest ball: the distance up to
            which an adversarial image counts.
    """

    name: str
    row: str
    attack: Any
    seeds: np.ndarray
    number: int = 0
    rounds: int = 1
    is_first: bool = True
    skips_misclassified: bool = False
    epsilon: float | None = None


def plan(attacks, seeds, classes, shape):
    """Returns the steps of an evaluation, in order.

    Args:
        attacks: mapping from names to `Attack` or `CallableAttack`.
        seeds: [examples, 2] integers.
        classes: number of classes.
        shape: shape of the images, [examples, ...].
    """
    steps = [Step(NATURAL, NATURAL, CallableAttack(_Unchanged()), seeds)]
    for name, attack in attacks.items():
        for index, (stage, part, part_seeds) in enumerate(stages(attack, seeds)):
            step = Step(
                name,
                f"{name}/{stage}" if stage else name,
                part,
                part_seeds,
                skips_misclassified=attack.skips_misclassified,
            )
            if part.minimises:
                widest = dataclasses.replace(part, threat=part.threat.widest(shape))
                step = step._replace(attack=widest, skips_misclassified=True, epsilon=part.threat.epsilon)
            rounds = part.rounds(classes)
            for number in range(rounds):
                steps.append(step._replace(number=number, rounds=rounds, is_first=index == number == 0))
    return steps


class _Unchanged:
    """Returns the natural images."""

    gradients = 0

    def __call__(self, network, images, labels, seed):
        return images


def batch_arrays(step, found):
    """Returns the results of a batch as a dictionary of arrays."""
    part = {"rows": found.rows, "predicted": found.predictions.predicted}
    if step.epsilon is not None:
        part["distances"] = np.asarray(step.attack.threat.distance(found.found, found.images))
    if step.attack.reuses_candidates:
        part["candidates"] = np.asarray(found.found)
    return part


class Results:
    """The results of all examples after the first `steps` steps.

    Attributes:
        predictions, seconds, gradients, distances: as in `Table`.
        standing: the state of the examples under the current attack.
        worst: [examples] the class each was predicted as when it was first misclassified, otherwise its label.
    """

    def __init__(self, labels, stop_early):
        self.labels, self.stop_early = labels, stop_early
        self.steps, self.predictions, self.seconds, self.gradients, self.distances = 0, {}, {}, {}, {}
        self.standing, self.worst = None, labels.copy()

    def begin(self, step, shape):
        """Prepares a round; an attack's first round selects the examples to attack."""
        everything = np.ones(len(self.labels), bool)
        if step.name == NATURAL:
            self.standing = AttackState(self.labels, self.labels.copy(), everything)
        elif step.is_first:
            before = self.worst if self.stop_early and step.epsilon is None else self.predictions[NATURAL]
            left = before == self.labels if self.stop_early or step.skips_misclassified else everything
            self.standing = AttackState(self.labels, before.copy(), left)
            self.predictions[step.name], self.seconds[step.name], self.gradients[step.name] = before, 0.0, 0
        if step.number == 0:
            self.seconds[step.row] = 0.0
            self.gradients[step.row] = None if step.attack.gradients is None else 0
            # `empty` allocates lazily: rows that are never written take no memory.
            self.standing.candidates = np.empty(shape, "float32") if step.attack.reuses_candidates else None
            if step.epsilon is not None:
                self.distances[step.row] = np.where(self.standing.left, np.inf, 0.0).astype("float32")

    def add(self, step, part):
        """Adds the results of a batch, as `batch_arrays` returns them."""
        rows, predicted = part["rows"], part["predicted"]
        if step.epsilon is not None:
            fooled = predicted != self.labels[rows]
            self.distances[step.row][rows] = np.where(fooled, part["distances"], np.inf)
            within = part["distances"] <= step.epsilon * (1 + ROUNDING)
            predicted = np.where(within, predicted, self.labels[rows])
        self.standing.update(rows, predicted, part.get("candidates"))
        self.seconds[step.row] += float(part["seconds"])
        if self.gradients[step.row] is not None:
            self.gradients[step.row] += int(step.attack.gradients) * len(rows)

    def end(self, step):
        """Ends a round; after a stage's last one, records its predictions."""
        self.steps += 1
        if step.number + 1 < step.rounds:
            return
        predicted = self.standing.predicted.copy()
        if self.stop_early and step.epsilon is not None:
            predicted = np.where(self.worst == self.labels, predicted, self.worst)
        self.predictions[step.name] = self.predictions[step.row] = predicted
        self.worst = np.where(self.worst == self.labels, predicted, self.worst)
        if step.row != step.name:
            rows = [row for row in self.seconds if row.startswith(f"{step.name}/")]
            self.seconds[step.name] = sum(self.seconds[row] for row in rows)
            costs = [self.gradients[row] for row in rows]
            self.gradients[step.name] = None if None in costs else sum(costs)

    def arrays(self):
        """Returns all results as a dictionary of arrays."""
        facts = {name: getattr(self, name) for name in ("steps", "seconds", "gradients")}
        standing = self.standing
        candidates = {} if standing.candidates is None else {"candidates": standing.candidates[standing.left]}
        return {
            "facts": json.dumps(facts), "worst": self.worst, "predicted": standing.predicted, "left": standing.left,
            **candidates,
            **{f"predictions/{name}": values for name, values in self.predictions.items()},
            **{f"distances/{name}": values for name, values in self.distances.items()},
        }  # fmt: skip

    def restore(self, arrays):
        """Restores what `arrays` returned; does nothing for `None`."""
        if arrays is None:
            return
        for name, value in json.loads(str(arrays.pop("facts"))).items():
            setattr(self, name, value)
        self.worst = arrays.pop("worst")
        self.standing = AttackState(self.labels, arrays.pop("predicted"), arrays.pop("left"))
        if "candidates" in arrays:
            remaining = arrays.pop("candidates")
            self.standing.candidates = np.empty((len(self.labels), *remaining.shape[1:]), "float32")
            self.standing.candidates[self.standing.left] = remaining
        for key, values in arrays.items():
            kind, _, name = key.partition("/")
            getattr(self, kind)[name] = values

    def table(self, positions, strategy, class_names, record):
        """Returns the `Table` of all workers' examples, sorted by their positions in the data."""
        own = (positions, self.labels, self.predictions, self.seconds, self.gradients, self.distances)
        positions, labels, predictions, seconds, gradients, distances = zip(
            *distribution.all_gather(own, strategy), strict=True
        )
        order = np.argsort(np.concatenate(positions))

        def joined(parts):
            return {name: np.concatenate([part[name] for part in parts])[order] for name in parts[0]}

        def total(parts):
            return {name: None if parts[0][name] is None else sum(part[name] for part in parts) for name in parts[0]}

        return Table(
            np.concatenate(labels)[order], joined(predictions), total(seconds), total(gradients), self.stop_early,
            distances=joined(distances), record=record,
            class_names=None if class_names is None else tuple(map(str, class_names)),
        )  # fmt: skip
