"""Accuracy under attacks, stage by stage over a whole data set."""

import dataclasses
import json
import numbers
import time
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from keras_mart import checks, distribution
from keras_mart.attacks import Attack
from keras_mart.attacks.base import as_seed
from keras_mart.attacks.inference import network_of
from keras_mart.attacks.survivors import Examples, Standing, run_round, stages
from keras_mart.evaluation import examples, record
from keras_mart.evaluation.precision import precision_of, with_precision
from keras_mart.evaluation.progress import Progress
from keras_mart.evaluation.state import Nowhere, State
from keras_mart.evaluation.table import RESERVED, Table
from keras_mart.randomness import of_examples
from keras_mart.threats import ROUNDING

NATURAL = "natural"


def evaluate(
    model,
    data,
    attacks,
    *,
    batch_size=128,
    limit=None,
    stop_early=False,
    seed=0,
    verbose=1,
    state=None,
    precision="float32",
    class_names=None,
):
    """Natural accuracy and the accuracy under each attack, over all examples.

    All data are read and looked through first. Then each attack, and each stage and round of it, runs on all the
    examples that are left to it, in full batches. A compound attack such as `AutoAttack` gets a row for each stage too,
    `<attack>/<stage>`: the accuracy after it. Attacks in rounds (APGDT, FABT, Square, AutoAttack) leave alone what is
    misclassified without them, and count it as misclassified; the others are run on every example.

    The table depends on the seed but, but for rounding, not on the batch size. Under a strategy that the model was made
    in, every replica attacks its share of each batch. Several workers share the examples out, and each gets the whole
    table: the one that a single process would get. All of them must call it, with the same data.

    Args:
        model: a Keras classifier that returns logits, wrapped or not.
        data: batches of (images, labels), as a `tf.data.Dataset` or any iterable; or a pair of arrays. They must fit
            in the machine's memory.
        attacks: name to attack: a `keras_mart.Attack`, or a callable of (network, images, labels, seed), where the seed
            is [2] integers, others for each batch.
        batch_size: number of examples that are attacked at once.
        limit: number of examples, the first ones (of a DistributedDataset, the first of each worker); all by default.
        stop_early: `True` runs each attack only on what was classified correctly under all before it. That saves time
            where the worst case is all that matters; an attack's row is then the accuracy under it and all before it.
        seed: integer; the same seed gives the same table.
        verbose: 0 for silence, 1 for a line of progress, 2 for a line for each round.
        state: folder in which each batch that is done is kept. Called again with the same arguments (another
            `batch_size` will do), it goes on from there, and ends with the same table.
        precision: "float32" judges and attacks a network of lower precision, such as mixed_bfloat16, as a copy that
            computes in float32. `None` takes the network as it is.
        class_names: names of the classes, for the table.

    Returns:
        A `Table`.

    Raises:
        ValueError: attacks that cannot be named so, a batch size or limit that is not positive, empty data, images
            outside [0, 1], labels that do not fit, a model that does not return logits or that cannot be copied, or a
            `state` that another process uses or that is of another evaluation.
    """
    network = with_precision(network_of(model), precision)
    checks.positive_integer(batch_size, "batch_size")
    if not isinstance(seed, numbers.Integral):
        raise ValueError(f"`seed` must be an integer. Received: seed={seed!r}")
    _check_attacks(attacks, state)
    images, labels = examples.read(network, data, limit)
    classes = checks.classes(network, images)
    _check_task(network, images[:1], attacks)
    _check_class_names(class_names, classes)
    said = _record(network, images, labels, attacks, seed, limit, stop_early)

    strategy = getattr(network, "distribute_strategy", None)
    worker, workers = distribution.worker(strategy)
    if not distribution.is_shared_out(data):
        images, labels = images[worker::workers], labels[worker::workers]
    places = np.arange(len(labels), dtype="int32") * workers + worker
    own = Examples(images, labels, np.asarray(of_examples(as_seed(seed), places)))

    books = _Books(labels, stop_early)
    plan = list(_plan(attacks, own.seeds, classes, images.shape))
    kept = Nowhere() if state is None else State(_of_worker(state, worker, workers), said)
    with kept.opened():
        _run(network, own, plan, books, kept, min(batch_size, len(labels)), Progress(len(labels), verbose))
    return books.table(places, strategy, class_names, said)


class _Step(NamedTuple):
    """A round of a stage of an attack, or the natural predictions: `row` is the stage's in the table."""

    name: str
    row: str
    attack: object
    seeds: np.ndarray
    number: int
    rounds: int
    is_first: bool
    epsilon: float | None  # of an attack that looks for the nearest adversarial image

    @property
    def spares(self):
        return getattr(self.attack, "spares", False) or self.epsilon is not None


def _plan(attacks, seeds, classes, shape):
    """The steps of an evaluation, in order."""
    yield _Step(NATURAL, NATURAL, _unchanged, seeds, 0, 1, True, None)
    for name, attack in attacks.items():
        for place, (stage, part, part_seeds) in enumerate(stages(attack, seeds)):
            row, epsilon, rounds = f"{name}/{stage}" if stage else name, None, 1
            if isinstance(part, Attack):
                rounds = part.rounds(classes)
                if part.minimises:  # it searches everywhere, and epsilon decides what counts
                    epsilon, part = part.threat.epsilon, dataclasses.replace(part, threat=part.threat.widest(shape))
            for number in range(rounds):
                first = place == number == 0
                yield _Step(name, row, part, part_seeds, number, rounds, first, epsilon)


def _unchanged(network, images, labels, seed):
    return images


_unchanged.gradients = 0


def _run(network, own, plan, books, kept, batch_size, progress):
    """Takes all steps that are not done yet, and keeps what is done after each batch."""
    books.restore(kept.done())
    for index in range(books.steps, len(plan)):
        step = plan[index]
        books.begin(step, own.images.shape)
        which = np.flatnonzero(books.standing.left)
        for part in kept.parts(index):
            books.take(step, part)
            which = np.setdiff1d(which, part["rows"])
        progress.begin(step, len(which))
        start, candidates = time.perf_counter(), books.standing.candidates
        for found in run_round(
            network, step.attack, own._replace(seeds=step.seeds), which, batch_size, step.number, candidates
        ):
            part = _part(step, found)
            part["seconds"] = time.perf_counter() - start
            books.take(step, part)
            kept.add(index, found.rows[0], part)
            progress.batch(len(found.rows))
            start = time.perf_counter()
        books.end(step)
        progress.end(step, int(np.sum(books.standing.left)), books.seconds[step.row])
        kept.finish(books.arrays())


def _part(step, found):
    """What a batch has come to, as arrays."""
    part = {"rows": found.rows, "predicted": found.judged.predicted}
    if step.epsilon is not None:
        part["distances"] = np.asarray(step.attack.threat.distance(found.found, found.images))
    if getattr(step.attack, "carries", False):
        part["candidates"] = found.found
    return part


class _Books:
    """What is known of the examples after so many `steps`.

    Attributes:
        predictions, seconds, gradients, distances: as in `Table`.
        standing: the examples under the attack that is being run.
        worst: [examples] what each was taken for when it was first misclassified, otherwise its label.
    """

    def __init__(self, labels, stop_early):
        self.labels, self.stop_early = labels, stop_early
        self.steps, self.predictions, self.seconds, self.gradients, self.distances = 0, {}, {}, {}, {}
        self.standing, self.worst = None, labels.copy()

    def begin(self, step, shape):
        """Prepares a round: the first of an attack finds the examples that it is to attack."""
        everything = np.ones(len(self.labels), bool)
        if step.name == NATURAL:
            self.standing = Standing(self.labels, self.labels.copy(), everything)
        elif step.is_first:
            before = self.worst if self.stop_early and step.epsilon is None else self.predictions[NATURAL]
            left = before == self.labels if self.stop_early or step.spares else everything
            self.standing = Standing(self.labels, before.copy(), left)
            self.predictions[step.name], self.seconds[step.name], self.gradients[step.name] = before, 0.0, 0
        if step.number == 0:
            self.seconds[step.row] = 0.0
            self.gradients[step.row] = None if getattr(step.attack, "gradients", None) is None else 0
            # Of memory that nothing is written to, none is used.
            carries = getattr(step.attack, "carries", False)
            self.standing.candidates = np.empty(shape, "float32") if carries else None
            if step.epsilon is not None:
                self.distances[step.row] = np.where(self.standing.left, np.inf, 0.0).astype("float32")

    def take(self, step, part):
        """Takes in what a batch has come to."""
        rows, predicted = part["rows"], part["predicted"]
        if step.epsilon is not None:
            fooled = predicted != self.labels[rows]
            self.distances[step.row][rows] = np.where(fooled, part["distances"], np.inf)
            within = part["distances"] <= step.epsilon * (1 + ROUNDING)
            predicted = np.where(within, predicted, self.labels[rows])
        self.standing.take(rows, predicted, part.get("candidates"))
        self.seconds[step.row] += float(part["seconds"])
        if self.gradients[step.row] is not None:
            self.gradients[step.row] += step.attack.gradients * len(rows)

    def end(self, step):
        """Notes how things stand after a round."""
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
        """All of it, as arrays by name."""
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
        """Takes what `arrays` gave; `None` for nothing."""
        if arrays is None:
            return
        for name, value in json.loads(str(arrays.pop("facts"))).items():
            setattr(self, name, value)
        self.worst = arrays.pop("worst")
        self.standing = Standing(self.labels, arrays.pop("predicted"), arrays.pop("left"))
        if "candidates" in arrays:
            some = arrays.pop("candidates")
            self.standing.candidates = np.empty((len(self.labels), *some.shape[1:]), "float32")
            self.standing.candidates[self.standing.left] = some
        for key, values in arrays.items():
            kind, _, name = key.partition("/")
            getattr(self, kind)[name] = values

    def table(self, places, strategy, class_names, said):
        """The `Table` of the examples of all workers, in their order."""
        mine = (places, self.labels, self.predictions, self.seconds, self.gradients, self.distances)
        places, labels, predictions, seconds, gradients, distances = zip(
            *distribution.gathered(mine, strategy), strict=True
        )
        order = np.argsort(np.concatenate(places))

        def joined(parts):
            return {name: np.concatenate([part[name] for part in parts])[order] for name in parts[0]}

        def total(parts):
            return {name: None if parts[0][name] is None else sum(part[name] for part in parts) for name in parts[0]}

        return Table(
            np.concatenate(labels)[order], joined(predictions), total(seconds), total(gradients), self.stop_early,
            distances=joined(distances), class_names=class_names and tuple(class_names), record=said,
        )  # fmt: skip


def check(model, data, attacks):
    """Raises ValueError where `evaluate` would, as far as arrays, or else the first batch, tell."""
    network = network_of(model)
    images, labels = examples.first(data)
    checks.batch(network, images, labels)
    _check_attacks(attacks)
    _check_task(network, np.asarray(images[:1]), attacks)


def _record(network, images, labels, attacks, seed, limit, stop_early):
    """What the evaluation is of, as `Table.record` says it."""
    return {
        "threat": record.common_threat(attacks.values()),
        "attacks": {name: record.attack(attack) for name, attack in attacks.items()},
        "precision": precision_of(network),
        "seed": int(seed),
        "limit": limit and int(limit),
        "stop_early": stop_early,
        "versions": record.versions(),
        "weights_sha256": record.weights_sha256(network),
        "data_sha256": record.data_sha256(images, labels),
    }


def _of_worker(state, worker, workers):
    return state if workers == 1 else f"{state}/{worker}-of-{workers}"


def _check_attacks(attacks, state=None):
    if not isinstance(attacks, Mapping):
        raise ValueError(f"`attacks` must map names to attacks. Received: {attacks!r}")
    for name, attack in attacks.items():
        taken_name = not isinstance(name, str) or name in RESERVED or "/" in name
        if taken_name or not callable(attack) or isinstance(attack, type):
            raise ValueError(
                f"`attacks` must map names to attacks; {', '.join(RESERVED)}, and names with a slash, are taken. "
                f"Received: {name!r}: {attack!r}"
            )
        if state is not None and not isinstance(attack, Attack):
            raise ValueError(f"`state` needs attacks that are told by their parameters. Received: {name!r}: {attack!r}")


def _check_task(network, image, attacks):
    for attack in attacks.values():
        if isinstance(attack, Attack):
            attack.check_task(network, image)


def _check_class_names(names, classes):
    if names is not None and len(names) != classes:
        raise ValueError(f"`class_names` must name each of the {classes} classes. Received: {len(names)} names")
