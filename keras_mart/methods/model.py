"""The model behind every method, and the one training step.

A method is what its attack climbs (`attack_objective`) plus what its training descends (`training_loss`). A step is
three parts: `_computed` (attack, forwards, gradients; nothing is assigned), `_agreed` (what all replicas must know, in
one message), and `_applied` (every variable becomes its new value where the step counts). With `accumulate` the first
takes the batch in parts, one after the other (`methods/parts.py`).
"""

import contextlib
import inspect
import itertools
import random
import warnings

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_mart import checks, distribution, folding, losses, memory
from keras_mart.attacks.base import Attack, Rounds
from keras_mart.attacks.inference import compile_by_xla, inference
from keras_mart.datasets.batches import filled
from keras_mart.methods import averaging, hyperparameter, parts
from keras_mart.methods import batch as batches
from keras_mart.methods.batch import Outputs, Pass
from keras_mart.methods.guard import ON_NAN, Guard, kept_unless
from keras_mart.methods.hyperparameter import Hyperparameter
from keras_mart.methods.perturbation import AWP
from keras_mart.methods.scope import Passes, inlined
from keras_mart.optimizers import of_summed_gradients

# Distinguish the random numbers of training from those of validation.
TRAINING, TESTING = 0, 1
ATTACK_MODES, STATISTICS = ("evaluation", "training"), ("all", "adversarial")


class AdversarialModel(keras.Model):
    """A classifier trained against an adversary, with `compile`, `fit`, `evaluate`, `predict` and `save` as ever.

    Calling it calls the wrapped network and returns float32 logits. The metrics are `loss`, `natural_accuracy`
    and `adversarial_accuracy` (unweighted); `metrics=` of `compile` apply to the natural logits. In validation
    the attack climbs its own loss at its own epsilon, so that `val_adversarial_accuracy` compares across methods, and
    `val_loss` is the method's loss on what it found. Weight regularisation counts once; activity regularisation counts
    for the last training forward of a step, the adversarial one. Both training forwards draw the same random numbers
    (Dropout, augmentation inside the network): the loss compares two images, not two networks. The official codes draw
    anew for each.

    A hyperparameter (`seed`, `beta`, ...) takes effect as soon as it is set; another `attack`, `weight_perturbation` or
    `form` does so at the next epoch, `evaluate` or `train_on_batch`. So does a layer's `trainable`, but the optimizer
    takes no weights that were frozen when `compile` was called: call it again, with a new optimizer, as Keras asks for.

    On several replicas a step means what it means on one: its loss is that of the whole batch, and so is the gradient
    that an optimizer clips. BatchNormalization only normalises with the statistics of each replica's part; the running
    ones are the replicas' averages, weighted by their numbers of examples, and equal everywhere.

    Args:
        network: a Keras classifier that returns logits [batch, classes]; kept as `.network`.
        attack: an attack with `maximise`, such as `keras_mart.PGD`.
        seed: integer from which all random starts derive; drawn from Python's `random` by default
            (so `keras.utils.set_random_seed` fixes it). On several workers the first one's holds.
        weight_average: decay in (0, 1) of a moving average of the weights (BatchNormalization's running statistics
            included), `None` for none; that of step n is at most n / (n + 9). Evaluation, validation, predictions,
            attacks on the model and exports use the averaged network, `.averaged_network`; training goes on with
            `.network`, whose weight regularisation is the one in `val_loss` too.
        weight_average_start: number of training steps before the average begins; until then it is a copy.
        weight_perturbation: a `keras_mart.AWP`, `None` for none.
        label_smoothing: share in [0, 1) of each label that is spread over all classes in the training loss, `None` for
            none. The attack climbs its objective on the labels as they are.
        epsilon_schedule: a `keras.optimizers.schedules.LearningRateSchedule` that maps the number of the training step
            to the radius of the attack's ball in training, in input units; steps of the attack grow with it. `None`
            for the attack's own epsilon, which validation uses in any case.
        attack_mode: "evaluation" or "training": how BatchNormalization, Dropout and the like work while the attack
            runs in training. "training" draws in all steps of the attack what the training forwards draw (with
            `accumulate`, those of the first part), and leaves running statistics as they are.
        statistics: the training forwards that BatchNormalization's running statistics see: "all", or "adversarial".

    Raises:
        ValueError: a network that ends in a softmax, an attack that cannot climb a method's objective, a network that
            cannot be copied for its average, numbers out of range, names that are unknown, and what a method without
            an adversary, or one that sets each example's own radius, has no use for.
    """

    # Tells attacks, evaluation and export to work on the network inside.
    wraps_network = True
    # Whether BatchNorm and the gradient see the natural batch; otherwise it is forwarded only for its accuracy.
    trains_on_natural = True
    # Whether a batch also runs through the adversary.
    has_adversary = True
    # Whether training data must be ((image, index), label[, weight]).
    needs_index = False
    # Whether the loss compares the neighbours (0, 1), (2, 3), ... of a batch.
    pairs_neighbours = False
    # Whether the attack's ball in training has the radius that `epsilon_schedule` says.
    has_radius = True
    # What `compile` sets.
    validation_attack, on_nan, accumulate, decay_all, _xla = None, "stop", 1, True, False

    seed = Hyperparameter("an integer in [0, 2**31)", lambda value: 0 <= value < 2**31, integer=True)
    weight_average = Hyperparameter("a decay between 0 and 1", lambda value: 0 < value < 1)
    weight_average_start = Hyperparameter("a number of steps, at least 0", lambda value: value >= 0, integer=True)
    label_smoothing = Hyperparameter("at least 0 and below 1", lambda value: 0 <= value < 1)

    def __init__(
        self, network, attack=None, *, seed=None, weight_average=None, weight_average_start=0, weight_perturbation=None,
        label_smoothing=None, epsilon_schedule=None, attack_mode="evaluation", statistics="all", **kwargs,
    ):  # fmt: skip
        if self.has_adversary and (isinstance(attack, type) or not hasattr(attack, "maximise")):
            raise ValueError(
                f"`attack` must be able to climb the objective of {type(self).__name__}, as keras_mart.PGD does. "
                f"Received: attack={attack!r}"
            )
        if weight_perturbation is not None and not isinstance(weight_perturbation, AWP):
            raise ValueError(f"`weight_perturbation` must be a keras_mart.AWP. Received: {weight_perturbation!r}")
        _check_adversary(self, epsilon_schedule, attack_mode, statistics)
        checks.network(network)
        # That of its float16 layers where it has any: they need the loss scaling.
        policies = [layer.dtype_policy for layer in (*network.layers, network)]
        half = [policy for policy in policies if policy.compute_dtype == "float16"]
        super().__init__(autocast=False, **{"dtype": (half or policies[-1:])[0], **kwargs})
        self.network = network
        if weight_average is None and weight_average_start != 0:
            raise ValueError(
                "`weight_average_start` needs a `weight_average`. "
                f"Received: weight_average_start={weight_average_start!r} without one"
            )
        self.weight_average, self.weight_average_start = weight_average, weight_average_start
        self.averaged_network = None if weight_average is None else averaging.frozen_copy(network)
        self.built = network.built
        self.attack = attack
        self.seed = distribution.agreed(random.getrandbits(31) if seed is None else seed)
        self.weight_perturbation = weight_perturbation
        self.label_smoothing = label_smoothing
        self.epsilon_schedule, self.attack_mode, self.statistics = epsilon_schedule, attack_mode, statistics
        self.step, self.epoch = self._counter("step"), self._counter("epoch")
        self.natural_accuracy = keras.metrics.SparseCategoricalAccuracy("natural_accuracy")
        if self.has_adversary:
            self.adversarial_accuracy = keras.metrics.SparseCategoricalAccuracy("adversarial_accuracy")
        self.guard = Guard()

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
        """The images trained on, [batch, ...], and the size of the ball they lie in, scalar or [batch].

        `seed` is one of `keras_mart.randomness`, which draws from it.
        """
        objective = self.attack_objective(x, labels)
        if self.epsilon_schedule is None:
            return self.attack.maximise(objective, x, seed=seed), self.attack.threat.epsilon
        epsilon = ops.cast(self.epsilon_schedule(self.step), "float32")
        return self.attack.maximise(objective, x, epsilon, seed), epsilon

    def remember(self, labels, outputs, real):
        """Keeps what a method learns from a training step; `real` is 0 for examples that are filling."""

    def check_training_inputs(self, inputs):
        """Raises ValueError where the first inputs lack what the method needs besides images."""

    # What the hooks build on.

    def inference(self):
        """The network as training's attack sees it, in its `attack_mode`: maps images to float32 logits."""
        if self.attack_mode == "evaluation":
            return inference(self.network)
        logits = inference(self.network, training=True)

        def in_training_mode(images):
            with Passes(), inlined:
                return logits(images)

        return in_training_mode

    @property
    def judged_network(self):
        """The network that is evaluated, attacked and exported: the averaged one where there is one."""
        return self.averaged_network or self.network

    def frozen_networks(self):
        """List of the networks besides the trained one, which are never trained."""
        return [] if self.averaged_network is None else [self.averaged_network]

    def call(self, inputs, training=None):
        images, _ = checks.indexed(inputs)
        if training:
            logits = folding.training_view(self.network)(images)
        else:
            logits = self.judged_network(images, training=False)
        return ops.cast(logits, "float32")

    # The steps.

    def train_step(self, data):
        batch, seed = batches.of(data), self._seed(TRAINING, self.step)
        found, assigned = self._computed(batch, seed)
        agreed, moves = self._agreed(batch, found), {}
        if self._perturbs_weights:
            moves = self.weight_perturbation.perturbations(self.trainable_variables, agreed["gradients"])
            found, assigned = self._computed(batch, seed, found.attacked, moves)
            agreed = self._agreed(batch, found)
        return self._applied(batch, found, agreed, assigned, moves)

    def test_step(self, data):
        batch = batches.of(data)
        # The examples counted so far in this evaluation number its batches: each has its own random start.
        seed = self._seed(TESTING, ops.cast(self.natural_accuracy.count, "int32"))
        values, outputs = self._compiled(self._judged)(batch, seed)
        ranges = distribution.total(distribution.placed(batch.ranges))
        counts, _ = self.guard.judge(0, self._rules(batch, outputs), ranges, tf.constant(True), {})
        with kept_unless(counts, self.metrics_variables):
            logs = self._measured(batch, values, outputs)
        return distribution.for_keras({**logs, **self.get_metrics_result()})

    def _computed(self, batch, seed, attacked=None, moves=None):
        """Returns the `Pass` over a batch and the variables that its states are of; assigns nothing.

        Args:
            attacked: as in `Pass`; by default it is found here.
            moves: number of a trainable variable to what is added to it.
        """
        assigned = []

        def compute(batch, seed, attacked, moves, states=()):
            if attacked is None:
                arguments = batch.images, batch.labels, seed, batch.index
                attacked = self.perturb(*arguments) if self.has_adversary else (None, 0.0)
            if not self.trains_on_natural:
                natural = ops.stop_gradient(inference(self.network)(batch.images))
            with tf.GradientTape() as tape, Passes([*self._moved(moves or {}), *states]) as scope, inlined:

                def forward(images, counts=self.statistics == "all"):
                    scope.rewind_seeds()
                    with contextlib.nullcontext() if counts else scope.forgetful():
                        return self(images, training=True)

                if self.trains_on_natural:
                    natural = forward(batch.images, counts=self.statistics == "all" or not self.has_adversary)
                adversarial = None if attacked[0] is None else forward(attacked[0], counts=True)
                outputs = Outputs(natural, adversarial, attacked[1], batch.index)
                outputs = outputs._replace(images=batch.images, perturbed=attacked[0], forward=forward, seed=seed)
                values = self._values(batch, outputs)
                outputs = outputs.of_examples()
                loss = self.optimizer.scale_loss(batches.mean(values, batch.real))
            gradients = enumerate(tape.gradient(loss, self.trainable_variables))
            gradients = {number: tf.convert_to_tensor(each) for number, each in gradients if each is not None}
            terms = {"loss": values, **self.loss_terms(batch.labels, outputs)}
            terms = {name: batches.mean(each, batch.real) for name, each in terms.items()}
            assigned[:] = [variable for variable, _ in scope.assigned()]
            states = dict(enumerate(value for _, value in scope.assigned()))
            return Pass(attacked, values, outputs, terms, gradients, states)

        compute = parts.in_turn(compute, self.accumulate, self.network, self.pairs_neighbours)
        return self._compiled(compute)(batch, seed, attacked, moves), assigned

    def _moved(self, moves):
        """Pairs of a trainable variable and the tensor to read in its place."""
        moved = {number: self.trainable_variables[number] + move for number, move in moves.items()}
        # Regularizers read a variable that is not mapped as `None`: it is mapped to itself.
        pairs = enumerate(self.trainable_variables)
        return [(each, moved.get(number, each)) for number, each in pairs if each.regularizer or number in moved]

    def _agreed(self, batch, found):
        """Returns the means of the terms, gradients and states of all replicas, and the `ranges` of each."""
        means = {"terms": found.terms, "gradients": found.gradients, "states": found.states}
        means, ranges = distribution.combined(means, distribution.placed(batch.ranges), tf.reduce_sum(batch.real))
        return {**means, "ranges": ranges}

    def _applied(self, batch, found, agreed, assigned, moves):
        """Gives every variable its new value where the step counts, and returns the metrics."""
        gradients, terms, step = agreed["gradients"], agreed["terms"], self.step + 1
        scaled = isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer)  # which sees to overflows itself
        finite = [terms["loss"], *([] if scaled else gradients.values())]
        finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(each)) for each in finite])
        rules = self._rules(batch, found.outputs)
        counts, stopped = self.guard.judge(step, rules, agreed["ranges"], finite, terms, self.on_nan == "stop")
        variables = [*self.variables, *self.metrics_variables, *self.optimizer.variables]
        with kept_unless(counts, variables, self._compiled):
            back = {id(self.trainable_variables[number]): move for number, move in moves.items()}
            states = zip(assigned, agreed["states"].values(), strict=True)
            states = [value - back[id(each)] if id(each) in back else value for each, value in states]
            distribution.assign(assigned, states)
            if self.trainable_variables:
                pairs = [(gradients.get(number), each) for number, each in enumerate(self.trainable_variables)]
                with of_summed_gradients(self.optimizer, self._compiled):
                    self.optimizer.apply_gradients(pairs)
            else:
                warnings.warn("The model does not have any trainable weights.", stacklevel=2)
            if self.averaged_network is not None:
                start = self.weight_average_start
                averaging.update(self.network, self.averaged_network, self.weight_average, self.step, start)
            self.remember(batch.labels, found.outputs, batch.real)
            logs = self._measured(batch, found.values, found.outputs, whole=self.jit_compile)
        distribution.assign([self.step], [tf.where(stopped, step - 1, step)])
        return distribution.for_keras({**logs, **self.get_metrics_result()})

    def _judged(self, batch, seed):
        perturbed, adversarial, epsilon = None, None, 0.0
        if self.has_adversary:
            attack = self.validation_attack or self.attack
            perturbed = attack.perturb(inference(self.judged_network), batch.images, losses.hard(batch.labels), seed)
            adversarial, epsilon = self._as_judged(perturbed), attack.threat.epsilon
        natural = self._as_judged(batch.images)
        outputs = Outputs(natural, adversarial, epsilon, None, batch.images, perturbed, self._as_judged, seed)
        return self._values(batch, outputs), outputs.of_examples()

    def _as_judged(self, images):
        return self(images, training=False)

    def _values(self, batch, outputs):
        """[batch] the weighted losses, each with the regularisation losses of the network added."""
        labels = batch.labels
        if self.label_smoothing is not None:
            labels = losses.smoothed(labels, outputs.natural.shape[-1], self.label_smoothing)
        regularisation = sum(ops.cast(loss, "float32") for loss in self.losses)  # further forwards replace them
        return batch.weights * self.training_loss(labels, outputs) + regularisation

    def _measured(self, batch, values, outputs, whole=False):
        """Updates the metrics; returns those of `compile`, which must not see filling.

        `whole` says that there is none: a slice of unknown length is nothing for XLA.
        """
        loss = next(each for each in self.metrics if each.name == "loss")  # which `compile` has made, the first of all
        loss.update_state(values, batch.real)
        labels = losses.hard(batch.labels)
        self.natural_accuracy.update_state(labels, outputs.natural, batch.real)
        if outputs.adversarial is not None:
            self.adversarial_accuracy.update_state(labels, outputs.adversarial, batch.real)
        examples = None if whole else tf.cast(tf.reduce_sum(batch.real), "int32")
        shown = batch.images, batch.labels, outputs.natural, batch.weights
        return self.compute_metrics(*(each[:examples] for each in shown))

    def _rules(self, batch, outputs):
        count = self.num_examples if self.needs_index else None
        return checks.ranges(outputs.natural.shape[-1], count, checks.are_soft(batch.labels))

    def _seed(self, purpose, number):
        seed = tf.random.fold_in(ops.stack([self.seed, purpose]), ops.convert_to_tensor(number))
        return tf.random.fold_in(seed, distribution.replica_id())

    def _compiled(self, function):
        """The function compiled by XLA where `jit_compile` says so: all of it that runs inside one replica.

        On one device Keras compiles the whole training step. What replicas say to one another, and metrics that must
        not see filling, XLA does not take.
        """
        return tf.function(function, jit_compile=True, autograph=False) if self._xla else function

    # What Keras calls, and users.

    def build(self, input_shape):
        shape = input_shape[0] if isinstance(input_shape[0], (tuple, list)) else input_shape
        with tf.init_scope():  # a graph may be being traced
            if not self.network.built:
                if None in shape[1:]:
                    self.network.build(shape)
                else:  # all that builds a subclassed network
                    self.network(ops.zeros((1, *shape[1:])), training=False)
            if self.weight_average is not None and self.averaged_network is None:
                self.averaged_network = averaging.frozen_copy(self.network)
        self.built = True

    def compile(
        self, optimizer="rmsprop", loss=None, loss_weights=None, metrics=None, *, validation_attack=None,
        jit_compile="auto", on_nan="stop", accumulate=1, decay_all=True, **kwargs,
    ):  # fmt: skip
        """Configures training. Arguments are those of `keras.Model.compile`, but for the loss, which the method owns.

        Args:
            optimizer: name or instance.
            metrics: metrics of the natural logits, as Keras takes them.
            validation_attack: the attack of validation and `evaluate`, one that does not run in rounds; by default the
                one of training.
            jit_compile: `True` has XLA compile the training step, metrics included (on several replicas attack and
                gradient), and attacks on the model and its evaluation; `False` has it compile nothing, as some metrics
                ask for; "auto" does so on GPUs.
            on_nan: what becomes of a step whose loss or gradient is not finite. It leaves weights, optimizer,
                statistics, margins and metrics as they were, on all replicas. "stop" leaves those after it out too, and
                ends `fit` with an error that tells the step and the values of the loss's parts: after steps 1, 2, 4,
                8, ... of an epoch and at its end, as a look at every step would keep a GPU waiting. "skip" goes on,
                and says there what was left out.
            accumulate: number of parts in which a step takes its batch, or each replica its share of it, one after the
                other: it needs the memory of one. All else is as without, to rounding: one update, by the mean gradient
                of the whole batch. But BatchNormalization normalises with the statistics of each part, as on replicas,
                and Dropout draws other numbers. A batch that does not divide is filled up with its last examples, which
                count only in those statistics. Validation takes whole batches.
            decay_all: `False` leaves biases and BatchNormalization's parameters, and all other weights of rank below 2,
                out of the optimizer's weight decay, in place of what its `exclude_from_weight_decay` was told.

        Raises:
            ValueError: a loss was passed, an unknown `on_nan`, a `validation_attack` that cannot be, an `accumulate`
                that is not positive, several `steps_per_execution` or an optimizer's own accumulation on several
                replicas, `decay_all=False` with an optimizer that is built already.
        """
        if loss is not None or loss_weights is not None:
            raise ValueError(
                f"`compile` takes no loss: {type(self).__name__} trains with its own (`training_loss`). "
                f"Received: loss={loss!r}, loss_weights={loss_weights!r}"
            )
        checks.one_of(on_nan, ON_NAN, "on_nan")
        checks.positive_integer(accumulate, "accumulate")
        fits = (
            self.has_adversary
            and isinstance(validation_attack, Attack)
            and not isinstance(validation_attack, Rounds)
            and type(validation_attack).perturb is not Attack.perturb
        )
        if not (validation_attack is None or fits):
            raise ValueError(
                "`validation_attack` must be an attack such as keras_mart.PGD, of a method that has an adversary. "
                f"Received: {validation_attack!r} for {type(self).__name__}"
            )
        replicas = self.distribute_strategy.num_replicas_in_sync
        checks.on_replicas(replicas, optimizer, kwargs.get("steps_per_execution"))
        checks.decay_all(decay_all, optimizer)
        self.validation_attack = validation_attack
        self.on_nan, self.accumulate, self.decay_all = on_nan, accumulate, decay_all
        self._jit_compile_argument = jit_compile
        xla = distribution.prefers_xla() if jit_compile == "auto" else bool(jit_compile)
        self._xla = xla and not kwargs.get("run_eagerly")
        super().compile(optimizer, metrics=metrics, jit_compile=self._xla and replicas == 1, **kwargs)
        self.guard.forget()
        if self.built:
            self._build_all()

    def _build_all(self, shape=None):
        """Builds before any graph is traced: variables that come later escape what a step keeps or takes back."""
        with self.distribute_strategy.scope():
            if not self.built:
                self.build(shape)
            for each in self.frozen_networks():  # `trainable` of the whole model frees them too
                averaging.freeze(each)
            if self.compiled:
                compile_by_xla(self.judged_network, self._jit_compile_argument)
            if self.compiled and self.optimizer is not None and not self.optimizer.built:
                if not self.decay_all:  # Keras does not save what an optimizer leaves out
                    inner = getattr(self.optimizer, "inner_optimizer", self.optimizer)
                    kept = [each for each in self.trainable_variables if len(each.shape) < 2 or each.name == "bias"]
                    inner.exclude_from_weight_decay(kept)
                self.optimizer.build(self.trainable_variables)

    def get_compile_config(self):
        config = super().get_compile_config()
        attack = keras.saving.serialize_keras_object(self.validation_attack)
        own = {"validation_attack": attack, "jit_compile": self._jit_compile_argument}
        own |= {name: getattr(self, name) for name in ("on_nan", "accumulate", "decay_all")}
        return {**config, **own} if config else config

    def compile_from_config(self, config):
        self.compile(**keras.saving.deserialize_keras_object(config))

    def fit(self, x=None, y=None, *args, **kwargs):
        arguments = inspect.signature(super().fit).bind(x, y, *args, **kwargs).arguments
        self.guard.forget()
        x = self._check(x, y, training=True)
        validation = arguments.get("validation_data")
        if isinstance(validation, (tuple, list)):
            self._check(*validation[:2])
        elif validation is not None and not hasattr(validation, "__next__"):  # a generator cannot be looked into
            several = arguments.get("epochs", 1) > arguments.get("initial_epoch", 0) + 1
            self._check(validation, readable_again=several)
        # Several workers shuffle arrays alike, each for itself.
        distribution.share_seed(self.distribute_strategy)
        arguments["x"] = distribution.prepared(x, self.distribute_strategy)
        arguments["validation_data"] = self._for_evaluation(validation)
        callbacks, own = arguments.get("callbacks"), _Epochs()
        if not isinstance(callbacks, keras.callbacks.CallbackList):
            arguments["callbacks"] = [own, *keras.tree.flatten(callbacks or [])]
            return super().fit(**arguments)
        own.set_model(self)
        callbacks.callbacks.insert(0, own)
        try:
            return super().fit(**arguments)
        finally:
            callbacks.callbacks.remove(own)

    def evaluate(self, x=None, y=None, *args, **kwargs):
        # In `fit`, which has checked the data, Keras hands on the callbacks of `fit`.
        if any(type(each) is _Epochs for each in getattr(kwargs.get("callbacks"), "callbacks", ())):
            self.guard.look()  # training that has stopped needs no validation
        else:
            self.guard.forget()
            x = self._for_evaluation(self._check(x, y))
        found = super().evaluate(x, y, *args, **kwargs)
        self.guard.look()
        return found

    def train_on_batch(self, x, y=None, *args, **kwargs):
        self._check(x, y, training=True)
        return super().train_on_batch(x, y, *args, **kwargs)

    def test_on_batch(self, x, y=None, *args, **kwargs):
        self._check(x, y)
        found = super().test_on_batch(x, y, *args, **kwargs)
        self.guard.look()
        return found

    def _check(self, x, y=None, training=False, readable_again=False):
        """Raises ValueError where the first batch is no good; returns the x to go on with.

        The values of a `tf.data.Dataset` are looked at only if it is `readable_again`; each step looks at its own.
        """
        with self.distribute_strategy.scope():  # the first batch builds a network that is not built
            x, first = checks.first_batch(x, y, readable_again)
            images, index, labels, _ = checks.unpacked(first)
            checks.batch(self.network, images, labels)
        self._image_shape = tuple(images.shape if isinstance(images, tf.TypeSpec) else np.shape(images))
        labels = labels if isinstance(labels, tf.TypeSpec) else np.asarray(labels)
        self._shares_shape = tuple(labels.shape[1:]) if checks.are_soft(labels) else ()
        self._build_all(self._image_shape)
        for attack in (self.attack, self.validation_attack):
            if isinstance(attack, Attack):
                attack.check_images(self._image_shape)
        if training:
            self.check_training_inputs(images if index is None else (images, index))
        return x

    def _for_evaluation(self, data):
        """The data prepared; the last batch of a `tf.data.Dataset` filled up where XLA would compile its size anew."""
        data = distribution.prepared(data, self.distribute_strategy)
        own = type(self).test_step is AdversarialModel.test_step  # another's knows nothing of filling
        return filled(data) if self._xla and own and isinstance(data, tf.data.Dataset) else data

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        # Private: to build the metrics under a strategy, Keras reads a batch for its shapes, averages the replicas'
        # parts, which fails where they differ in size (keras-team/keras issue 20585), and reads the data anew.
        images = keras.KerasTensor((None, *self._image_shape[1:]))
        labels = keras.KerasTensor((None, *self._shares_shape), "float32" if self._shares_shape else "int32")
        super()._maybe_symbolic_build(data_batch=(images, labels))
        # Without a strategy Keras leaves the metrics to the first trace of a step, which would have to be made twice.
        unbuilt = [each for each in self.metrics if not getattr(each, "built", True)]
        if unbuilt and None not in self._image_shape[1:]:
            classes = checks.classes(self.network, np.zeros((1, *self._image_shape[1:]), "float32"))
            for each in unbuilt:
                each.build(labels, keras.KerasTensor((None, classes)))

    @property
    def _perturbs_weights(self):
        """Whether the `weight_perturbation` is behind its warm-up: a trace holds for one or the other."""
        with tf.init_scope():
            return self.weight_perturbation is not None and int(self.epoch.numpy()) >= self.weight_perturbation.warmup

    def make_train_function(self, force=False):
        if force or self._changed("training") or self.train_function is None:
            super().make_train_function(force=True)
            self._run_step = self.train_function
        calls = itertools.count(1)

        def glance():  # while it is new often, and ever less
            number = next(calls)
            if number & (number - 1) == 0:
                self.guard.look()

        self.train_function = followed(self._run_step, glance)

    def make_test_function(self, force=False):
        whole, self.jit_compile = self.jit_compile, False  # `_compiled` is all that XLA takes of it
        super().make_test_function(self._changed("evaluation") or force)
        self.jit_compile = whole

    def make_predict_function(self, force=False):
        super().make_predict_function(self._changed("prediction") or force)

    def _changed(self, kind):
        """Whether the network, the method or its attack are others than when this was called last.

        What counts is the attribute of each constructor argument, but for hyperparameters, which traces read as they
        are.
        """
        if self.averaged_network is not None:
            averaging.adapt(self.network, self.averaged_network)
        constructors = (each.__init__ for each in type(self).__mro__ if issubclass(each, AdversarialModel))
        names = {name for each in constructors for name in inspect.signature(each).parameters}
        names -= {"self", "network", *hyperparameter.names(self)}
        names |= {"on_nan", "accumulate", "validation_attack", "_perturbs_weights"}
        settings = {name: getattr(self, name, None) for name in names} | {"folding": folding.enabled()}
        if kind == "training":
            settings["trainable"] = [each.trainable for each in (*memory.layers(self), *self.variables)]
        return memory.changed(self.network, (kind, id(self)), settings)

    def predict_step(self, data):
        return self(checks.unpacked(data)[0], training=False)

    def save(self, filepath, *args, **kwargs):
        if str(filepath).endswith((".h5", ".hdf5")):
            raise ValueError(
                f"`filepath` must end in .keras: an h5 file of a wrapped model cannot be loaded. Received: {filepath}"
            )
        super().save(filepath, *args, **kwargs)

    def export(self, filepath, *args, **kwargs):
        """Exports the network that is judged, as `keras.Model.export`; `keras_mart.export` adds signatures."""
        self.judged_network.export(filepath, *args, **kwargs)

    def get_config(self):
        names = "network", "attack", "weight_perturbation", "epsilon_schedule"
        objects = {name: keras.saving.serialize_keras_object(getattr(self, name)) for name in names}
        names = "seed", "weight_average", "weight_average_start", "label_smoothing", "attack_mode", "statistics", "name"
        return {**objects, **{name: getattr(self, name) for name in names}}

    @classmethod
    def from_config(cls, config):
        with averaging.of_fresh_networks():
            return cls(**{name: keras.saving.deserialize_keras_object(value) for name, value in config.items()})


def _check_adversary(model, epsilon_schedule, attack_mode, statistics):
    """Raises ValueError where the arguments about the adversary are wrong, or the method has no use for them."""
    checks.one_of(attack_mode, ATTACK_MODES, "attack_mode")
    checks.one_of(statistics, STATISTICS, "statistics")
    if not isinstance(epsilon_schedule, keras.optimizers.schedules.LearningRateSchedule | None):
        raise ValueError(
            "`epsilon_schedule` must be a keras.optimizers.schedules.LearningRateSchedule, from steps to a radius. "
            f"Received: epsilon_schedule={epsilon_schedule!r}"
        )
    if epsilon_schedule is not None and not model.has_radius:
        raise ValueError(
            f"`epsilon_schedule` is for methods whose attack has one radius, which {type(model).__name__} has not. "
            f"Received: epsilon_schedule={epsilon_schedule!r}"
        )
    if not model.has_adversary and (attack_mode, statistics) != ("evaluation", "all"):
        raise ValueError(
            f"`attack_mode` and `statistics` are for methods with an adversary, which {type(model).__name__} has not. "
            f"Received: attack_mode={attack_mode!r}, statistics={statistics!r}"
        )


class _Epochs(keras.callbacks.Callback):
    """Tells the model which epoch it is in, from 0, and has it look for steps that did not count when it ends."""

    def on_epoch_begin(self, epoch, logs=None):
        self.model.epoch.assign(epoch)
        self.model.make_train_function()  # the perturbation of weights begins with an epoch

    def on_epoch_end(self, epoch, logs=None):
        self.model.guard.look()


def followed(function, then):
    """A train or test function after each call of which something is done."""

    def run(iterator):
        logs = function(iterator)
        then()
        return logs

    return run
