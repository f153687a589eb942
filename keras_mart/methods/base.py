"""The frame of every method: a Keras model that attacks its network and trains on what the attack found.

A method is what its attack climbs (`attack_objective`) plus what its training descends (`training_loss`).
The step itself is written once, here.
"""

import contextlib
import math
import random
import warnings
from typing import NamedTuple

import keras
import tensorflow as tf
from keras import ops

from keras_mart import checks, distribution, losses
from keras_mart.attacks.inference import inference
from keras_mart.methods import averaging, clipping, finite
from keras_mart.methods.hyperparameter import Hyperparameter
from keras_mart.methods.perturbation import AWP
from keras_mart.methods.scope import Passes, inlined
from keras_mart.methods.wrapper import NetworkModel

# Distinguish the random numbers of training from those of validation.
TRAINING, TESTING = 0, 1


class Outputs(NamedTuple):
    """What a training loss sees.

    natural: [batch, classes] float32 logits on x.
    adversarial: [batch, classes] float32 logits on x'; `None` where the method has no adversary.
    epsilon: the size of the ball used, scalar or [batch].
    index: [batch] int32 numbers of the examples; `None` in validation and where the data have none.
    """

    natural: object
    adversarial: object
    epsilon: object
    index: object = None


class Batch(NamedTuple):
    """One replica's part of a batch.

    `real` is 1 for its examples and 0 for filling; `extremes` are the lowest and the highest value that the images had
    before they were clipped to [0, 1].
    """

    images: object
    labels: object
    weights: object
    index: object
    real: object
    extremes: object


class Pass(NamedTuple):
    """What the forward and backward passes over one replica's part of a batch came to, before anything is assigned.

    values: [batch] weighted losses.
    terms: name to [batch] values of the loss's parts.
    gradients: of the trainable variables, the optimizer's loss scale included.
    states: number to new value, of the variables that layers assign in their calls.
    """

    values: object
    outputs: Outputs
    terms: dict
    gradients: list
    states: dict


class AdversarialModel(NetworkModel):
    """A classifier trained against an adversary, with `compile`, `fit`, `evaluate`, `predict` and `save` as ever.

    Calling it calls the wrapped network and returns float32 logits. The metrics are `loss`, `natural_accuracy`
    and `adversarial_accuracy` (unweighted); `metrics=` of `compile` apply to the natural logits. In validation
    the attack climbs its own loss at its own epsilon, so that `val_adversarial_accuracy` compares across methods, and
    `val_loss` is the method's loss on what it found. Weight regularisation counts once; activity regularisation counts
    for the last training forward of a step, the adversarial one.

    Both training forwards of a step draw the same random numbers (Dropout, augmentation inside the network), others in
    the next step: the loss compares two images, not two networks. The official codes draw anew for each.

    A hyperparameter (`seed`, `beta`, ...) takes effect as soon as it is set, in the middle of `fit` too; another
    `attack`, `weight_perturbation` or `form` does so at the next `fit`, `evaluate` or `train_on_batch`.

    On several replicas a step means what it means on one: its loss is that of the whole batch, and so is the gradient
    that an optimizer clips. BatchNormalization alone normalises with the statistics of each replica's part; the running
    ones are the replicas' averages, weighted by their numbers of examples, and equal everywhere.

    Args:
        network: a Keras classifier that returns logits [batch, classes]; kept as `.network`.
        attack: an attack with `maximise`, such as `keras_mart.PGD`.
        seed: integer from which all random starts derive; drawn from Python's `random` by default
            (so `keras.utils.set_random_seed` fixes it). On several workers the first one's holds.
        weight_average: decay in (0, 1) of a moving average of the weights (BatchNormalization's running statistics
            included), `None` for none. Evaluation, validation, predictions, attacks on the model and exports use the
            averaged network, `.averaged_network`; training goes on with `.network`, whose weight regularisation is
            the one in `val_loss` too. The decay of step n is at most n / (n + 9), so that early weights are soon
            forgotten.
        weight_perturbation: a `keras_mart.AWP`, `None` for none.

    Raises:
        ValueError: a network that ends in a softmax, an attack that cannot climb a method's objective, a network that
            cannot be copied for its average.
    """

    # Whether BatchNorm and the gradient see the natural batch; otherwise it is forwarded for its accuracy alone.
    trains_on_natural = True
    # Whether a batch also runs through the adversary.
    has_adversary = True
    # Whether training data must be ((image, index), label[, weight]).
    needs_index = False

    seed = Hyperparameter("an integer in [0, 2**31)", lambda value: 0 <= value < 2**31, integer=True)

    def __init__(self, network, attack=None, *, seed=None, weight_average=None, weight_perturbation=None, **kwargs):
        if self.has_adversary and (isinstance(attack, type) or not hasattr(attack, "maximise")):
            raise ValueError(
                f"`attack` must be able to climb the objective of {type(self).__name__}, as keras_mart.PGD does. "
                f"Received: attack={attack!r}"
            )
        if weight_perturbation is not None and not isinstance(weight_perturbation, AWP):
            raise ValueError(f"`weight_perturbation` must be a keras_mart.AWP. Received: {weight_perturbation!r}")
        super().__init__(network, weight_average=weight_average, **kwargs)
        self.attack = attack
        self.seed = distribution.agreed(random.getrandbits(31) if seed is None else seed)
        self.weight_perturbation = weight_perturbation
        self.step = self._counter("step")
        self.epoch = self._counter("epoch")
        self.natural_accuracy = keras.metrics.SparseCategoricalAccuracy("natural_accuracy")
        if self.has_adversary:
            self.adversarial_accuracy = keras.metrics.SparseCategoricalAccuracy("adversarial_accuracy")

    def _counter(self, name):
        return self.add_weight(
            shape=(), dtype="int32", trainable=False, name=name, initializer="zeros", aggregation="only_first_replica"
        )

    # The hooks of a method.

    def attack_objective(self, x, labels):
        """What the attack climbs in training: maps [batch, ...] images to [batch]. Cross-entropy by default."""
        logits = self.inference()
        return lambda candidates: losses.cross_entropy(labels, logits(candidates))

    def training_loss(self, labels, outputs):
        """What training descends: [batch] from [batch] labels and `Outputs`."""
        raise NotImplementedError

    def loss_terms(self, labels, outputs):
        """Name to [batch], the parts of `training_loss`: what a message about a loss that is not finite tells."""
        return {}

    def perturb(self, x, labels, seed, index=None):
        """The images trained on, [batch, ...], and the size of the ball they lie in, scalar or [batch]."""
        objective = self.attack_objective(x, labels)
        return self.attack.maximise(objective, x, seed=seed), self.attack.threat.epsilon

    def remember(self, index, epsilon, real):
        """Keeps what a method learns of single examples; `real` is 0 for those that are filling."""

    # What the hooks build on.

    def inference(self):
        """The network as attacks see it: maps images to float32 logits, in evaluation mode."""
        return inference(self.network)

    # The steps.

    def train_step(self, data):
        batch = self._unpack(data)
        examples = distribution.total(tf.reduce_sum(batch.real))
        adversarial, epsilon = None, 0.0
        if self.has_adversary:
            seed = self._seed(TRAINING, self.step)
            adversarial, epsilon = self._compiled(self.perturb)(batch.images, batch.labels, seed, batch.index)
        moves = self._moves(batch, adversarial, epsilon, examples)
        found, assigned = self._differentiated(batch, adversarial, epsilon, examples, moves)
        batch, found, counts = finite.agree(self, batch, found, examples)
        if batch.index is not None:
            self.remember(batch.index, epsilon, batch.real)
        self._update(found, assigned, moves, counts)
        with tf.control_dependencies([batch.real]):  # which cannot be had where training stops
            self.step.assign(self.step + 1)
        return self._measure(batch, found.values, found.outputs)

    def test_step(self, data):
        batch = self._unpack(data)
        # The examples counted so far in this evaluation number its batches: each has its own random start.
        seed = self._seed(TESTING, ops.cast(self.natural_accuracy.count, "int32"))
        values, outputs = self._compiled(self._judge)(batch, seed)
        batch = finite.refuse(self, batch, outputs)
        return self._measure(batch, values, outputs)

    def _moves(self, batch, adversarial, epsilon, examples):
        """What `weight_perturbation` adds to the trainable variables while the gradient is taken."""
        if self.weight_perturbation is None:
            return None

        def gradients():
            found, _ = self._differentiated(batch, adversarial, epsilon, examples)
            pairs = zip(self.trainable_variables, found.gradients, strict=True)
            return [ops.zeros_like(one) if each is None else tf.convert_to_tensor(each) for one, each in pairs]

        return self.weight_perturbation.perturbations(self.trainable_variables, gradients, self.epoch)

    def _differentiated(self, batch, adversarial, epsilon, examples, moves=None):
        """The `Pass` over a batch with the weights moved, and the variables that its `states` are of.

        Nothing is assigned.
        """
        assigned = []

        def passes(batch, adversarial, epsilon, examples, moves):
            if not self.trains_on_natural:
                natural = ops.stop_gradient(self.inference()(batch.images))
            with tf.GradientTape() as tape, Passes(self._moved(moves)) as scope, inlined:
                if self.trains_on_natural:
                    natural = self(batch.images, training=True)
                    scope.rewind_seeds()
                if adversarial is not None:
                    adversarial = self(adversarial, training=True)
                outputs = Outputs(natural, adversarial, epsilon, batch.index)
                values = self._values(batch, outputs)
                loss = self.optimizer.scale_loss(tf.reduce_sum(values * batch.real) / examples)
            gradients = tape.gradient(loss, self.trainable_variables)
            assigned[:] = [variable for variable, _ in scope.assigned()]
            states = dict(enumerate(value for _, value in scope.assigned()))
            return Pass(values, outputs, self.loss_terms(batch.labels, outputs), gradients, states)

        return self._compiled(passes)(batch, adversarial, epsilon, examples, moves), assigned

    def _moved(self, moves):
        """Pairs of a trainable variable and the tensor to read in its place."""
        variables = self.trainable_variables
        pairs = zip(variables, moves or [None] * len(variables), strict=True)
        moved = [(variable, ops.add(variable, move)) for variable, move in pairs if move is not None]
        # What a scope has no tensor for, Keras's regularizers take for `None`.
        there = {id(variable) for variable, _ in moved}
        return moved + [(each, each) for each in variables if each.regularizer and id(each) not in there]

    def _update(self, found, assigned, moves, counts):
        """Assigns what a pass came to: what layers assign, weights, optimizer, the weights' average."""
        trained = [*self.trainable_variables, *self.optimizer.variables]
        with finite.kept_unless(counts, trained) if self.on_nan == "skip" else contextlib.nullcontext():
            self._assign(assigned, found.states.values(), moves, counts)
            if self.trainable_variables:
                gradients = clipping.of_whole_batch(self.optimizer, found.gradients)
                self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
            else:
                warnings.warn("The model does not have any trainable weights.", stacklevel=2)
        if self.averaged_network is not None:
            averaging.update(self.network, self.averaged_network, self.weight_average, self.step, counts)

    def _assign(self, variables, values, moves, counts):
        """Gives variables the values that layers have assigned, less the moves that the passes were made with."""
        pairs = zip(self.trainable_variables, moves or [], strict=bool(moves))
        moved = {id(variable): move for variable, move in pairs if move is not None}
        values = [
            tf.where(counts, new - moved[id(variable)] if id(variable) in moved else new, variable)
            for variable, new in zip(variables, values, strict=True)
        ]
        distribution.assign(variables, values)

    def _judge(self, batch, seed):
        adversarial, epsilon = None, 0.0
        if self.has_adversary:
            images = self.attack.perturb(inference(self.judged_network), batch.images, batch.labels, seed)
            adversarial, epsilon = self(images, training=False), self.attack.threat.epsilon
        outputs = Outputs(self(batch.images, training=False), adversarial, epsilon)
        return self._values(batch, outputs), outputs

    def _values(self, batch, outputs):
        """[batch] the weighted losses, each with the regularisation losses of the network added.

        Their sum over all replicas, divided by the number of examples of all replicas, is the loss.
        """
        values = batch.weights * self.training_loss(batch.labels, outputs)
        return values + sum(ops.cast(loss, "float32") for loss in self.losses)

    def _measure(self, batch, values, outputs):
        self._loss_tracker.update_state(values, batch.real)  # private: Keras's own `loss`, made by `compile`
        self.natural_accuracy.update_state(batch.labels, outputs.natural, batch.real)
        if outputs.adversarial is not None:
            self.adversarial_accuracy.update_state(batch.labels, outputs.adversarial, batch.real)
        examples = tf.cast(tf.reduce_sum(batch.real), "int32")  # metrics of `compile` must not see the filling
        return distribution.for_keras(
            self.compute_metrics(
                batch.images[:examples], batch.labels[:examples], outputs.natural[:examples], batch.weights[:examples]
            )
        )

    def _unpack(self, data):
        images, index, labels, weights = checks.unpacked(data)
        images = ops.cast(images, "float32")
        index = None if index is None else ops.cast(index, "int32")
        labels = ops.reshape(ops.cast(labels, "int32"), (-1,))
        weights = ops.ones_like(labels, "float32") if weights is None else ops.cast(weights, "float32")
        images, *others = _fill((images, labels, ops.reshape(weights, (-1,)), index))
        extremes = ops.stack([ops.min(images), ops.max(images)])
        extremes = ops.where(ops.any(ops.isnan(images)), math.nan, extremes)
        return Batch(ops.clip(images, 0.0, 1.0), *others, extremes)

    def _seed(self, purpose, number):
        seed = tf.random.fold_in(ops.stack([self.seed, purpose]), ops.convert_to_tensor(number))
        return tf.random.fold_in(seed, distribution.replica_id())

    def get_config(self):
        objects = {"attack": self.attack, "weight_perturbation": self.weight_perturbation}
        objects = {name: keras.saving.serialize_keras_object(each) for name, each in objects.items()}
        return {**super().get_config(), **objects, "seed": self.seed}


def _fill(tensors):
    present = [tensor for tensor in tensors if tensor is not None]
    filled, real = distribution.fill_if_empty(present)
    return *filled, *[None] * (len(tensors) - len(present)), real
