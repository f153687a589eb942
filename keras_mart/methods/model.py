"""The base class of all methods, and the one training step.

A method defines the objective that its attack climbs (`attack_objective`) and the loss that its training descends
(`training_loss`). A training step has three parts: `_compute_pass` (attack, forward passes, gradients; assigns
nothing), `_all_reduce` (one message with everything that all replicas need), and `_apply_update` (assigns the new
values if the step counts). With `accumulate` the first part processes the batch in several parts (`methods/parts.py`).
"""

import contextlib
import inspect
import itertools
import random
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_mart import checks, distribution, folding, losses, memory
from keras_mart.attacks.base import Attack, Rounds
from keras_mart.attacks.inference import compile_by_xla, inference
from keras_mart.datasets.batches import pad_batches
from keras_mart.methods import averaging, hyperparameter, parts
from keras_mart.methods import batch as batches
from keras_mart.methods.batch import Outputs, Pass
from keras_mart.methods.guard import ON_NAN, Guard, revert_unless
from keras_mart.methods.hyperparameter import Hyperparameter
from keras_mart.methods.perturbation import AWP
from keras_mart.methods.scope import StepScope, inline_functions
from keras_mart.optimizers import applying_summed_gradients
from keras_mart.typing import ArrayLike, Tensor

# Folded into the seed, so that training and validation draw different random numbers.
TRAINING, TESTING = 0, 1
ATTACK_MODES, STATISTICS = ("evaluation", "training"), ("all", "adversarial")


class AdversarialModel(keras.Model):
    """Base class of the training methods: wraps a classifier as a `keras.Model` that trains it against an attack.

    Calling the model calls the wrapped network and returns float32 logits. The metrics are `loss`, `natural_accuracy`
    and `adversarial_accuracy` (unweighted); the `metrics` of `compile` are computed from the natural logits. In
    validation the attack climbs its own loss at its own epsilon, so that `val_adversarial_accuracy` is comparable
    across methods; `val_loss` is the method's loss on the adversarial examples of that attack.

    Weight regularisation is added once. Activity regularisation is that of the last forward pass in training mode, the
    adversarial one. Both forward passes of a step draw the same random numbers (Dropout, augmentation inside the
    network), so that the loss compares two images, not two networks; the official codes draw new ones for each pass.

    A hyperparameter (`seed`, `beta`, ...) takes effect as soon as it is set; a new `attack`, `weight_perturbation` or
    `form` takes effect at the next epoch, `evaluate` or `train_on_batch`. So does a layer's `trainable`, but the
    optimizer does not update weights that were frozen when `compile` was called: as Keras requires, call `compile`
    again, with a new optimizer.

    Training on several replicas is equivalent to training on one: the loss is that of the whole batch, and so is the
    gradient that an optimizer clips. BatchNormalization is the exception: it normalises with the statistics of each
    replica's part of the batch. Its running statistics are averaged over replicas, weighted by their numbers of
    examples, and are equal on all of them.

    Args:
        network: a Keras classifier that returns logits [batch, classes]; kept as `.network`.
        attack: an attack with `maximise`, such as `keras_mart.PGD`.
        seed: integer seed of the attack's random starts; by default drawn from Python's `random`, and therefore fixed
            by `keras.utils.set_random_seed`. With several workers, all use the first one's.
        weight_average: decay in (0, 1) of a moving average of the weights (including BatchNormalization's running
            statistics), or `None` for no average. The decay of step n is at most n / (n + 9). Evaluation, validation,
            predictions, attacks on the model and exports use the averaged network, `.averaged_network`; training
            continues with `.network`, whose weight regularisation is also the one in `val_loss`.
        weight_average_start: number of training steps before averaging starts; until then the average is a copy.
        weight_perturbation: a `keras_mart.AWP`, or `None`.
        label_smoothing: share in [0, 1) of each label that is spread over all classes in the training loss, or `None`.
            The attack's objective uses the original labels.
        epsilon_schedule: a `keras.optimizers.schedules.LearningRateSchedule` that maps the number of the training step
            to the radius of the training attack's ball, in input units; the attack's step size scales with it. `None`
            uses the attack's own epsilon, as validation always does.
        attack_mode: "evaluation" or "training", the mode of BatchNormalization, Dropout and the like while the training
            attack runs. In "training" mode all attack steps draw the same random numbers as the training forward
            passes (with `accumulate`, as those of the first part), and running statistics do not change.
        statistics: which training forward passes update BatchNormalization's running statistics, "all" or
            "adversarial".

    Raises:
        ValueError: the network ends in a softmax, or cannot be copied for its average; the attack has no `maximise`; an
            argument is out of range or unknown, or has no effect in this method.
    """

    # Makes attacks, evaluation and export use the wrapped network.
    wraps_network = True
    # Whether natural images are forwarded in training mode, with a gradient; otherwise only for their accuracy.
    trains_on_natural = True
    # Whether the method has an attack.
    has_adversary = True
    # Whether training data must be ((image, index), label[, weight]).
    needs_index = False
    # Whether the loss compares the neighbours (0, 1), (2, 3), ... of a batch.
    pairs_neighbours = False
    # Whether the training attack has one radius, which `epsilon_schedule` may set.
    has_radius = True
    # Set by Keras.
    train_function: Any
    jit_compile: Any
    # Set by `compile`.
    validation_attack, on_nan, accumulate, decay_all, _uses_xla = None, "stop", 1, True, False

    seed = Hyperparameter("an integer in [0, 2**31)", lambda value: 0 <= value < 2**31, integer=True)
    weight_average = Hyperparameter("a decay between 0 and 1", lambda value: 0 < value < 1)
    weight_average_start = Hyperparameter("a number of steps, at least 0", lambda value: value >= 0, integer=True)
    label_smoothing = Hyperparameter("at least 0 and below 1", lambda value: 0 <= value < 1)

    def __init__(
        self,
        network: keras.Model,
        attack: Attack | None = None,
        *,
        seed: int | None = None,
        weight_average: float | None = None,
        weight_average_start: int = 0,
        weight_perturbation: AWP | None = None,
        label_smoothing: float | None = None,
        epsilon_schedule: keras.optimizers.schedules.LearningRateSchedule | None = None,
        attack_mode: str = "evaluation",
        statistics: str = "all",
        **kwargs: Any,
    ) -> None:
        if self.has_adversary and (isinstance(attack, type) or not hasattr(attack, "maximise")):
            raise ValueError(
                f"`attack` must be able to climb the objective of {type(self).__name__}, as keras_mart.PGD does. "
                f"Received: attack={attack!r}"
            )
        if weight_perturbation is not None and not isinstance(weight_perturbation, AWP):
            raise ValueError(f"`weight_perturbation` must be a keras_mart.AWP. Received: {weight_perturbation!r}")
        _check_adversary(self, epsilon_schedule, attack_mode, statistics)
        checks.network(network)
        # The policy of float16 layers, if there are any, so that Keras scales the loss.
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
        self.attack: Any = attack
        self.seed = distribution.broadcast(random.getrandbits(31) if seed is None else seed)
        self.weight_perturbation: Any = weight_perturbation
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

    def attack_objective(self, x: Tensor, labels: Tensor) -> Callable[[Tensor], Tensor]:
        """Returns the objective that the training attack climbs, a function from [batch, ...] images to [batch].

        The cross-entropy by default.
        """
        logits = self.inference()
        return lambda candidates: losses.cross_entropy(labels, logits(candidates))

    def training_loss(self, labels: Tensor, outputs: Outputs) -> Tensor:
        """Returns the [batch] loss that training descends, from [batch] or soft [batch, classes] labels and `Outputs`.

        Every method must override this.
        """
        raise NotImplementedError

    def loss_terms(self, labels: Tensor, outputs: Outputs) -> dict[str, Tensor]:
        """Returns {name: [batch] values}, the parts of `training_loss` to report if it is not finite."""
        return {}

    def perturb(
        self, x: Tensor, labels: Tensor, seed: Any, index: Tensor | None = None
    ) -> tuple[Tensor, Tensor | float]:
        """Returns the images to train on, [batch, ...], and the size of the ball that they lie in, scalar or [batch].

        `seed` is to be used with the functions of `keras_mart.randomness`.
        """
        objective = self.attack_objective(x, labels)
        if self.epsilon_schedule is None:
            return self.attack.maximise(objective, x, seed=seed), self.attack.threat.epsilon
        epsilon = ops.cast(self.epsilon_schedule(self.step), "float32")
        return self.attack.maximise(objective, x, epsilon, seed), epsilon

    def remember(self, labels: Tensor, outputs: Outputs, real: Tensor) -> None:
        """Updates the method's own state after a training step; [batch] `real` is 0 for padding, 1 for examples."""

    def check_training_inputs(self, inputs: Any) -> None:
        """Raises ValueError if the first inputs lack anything that the method needs besides images."""

    # For use in hooks.

    def inference(self) -> Callable[[Tensor], Tensor]:
        """Returns the network in `attack_mode`, a function from images to float32 logits."""
        if self.attack_mode == "evaluation":
            return inference(self.network)
        logits = inference(self.network, training=True)

        def in_training_mode(images):
            with StepScope(), inline_functions:
                return logits(images)

        return in_training_mode

    @property
    def judged_network(self) -> keras.Model:
        """The network that is evaluated, attacked and exported: the averaged one if there is one."""
        return self.averaged_network or self.network

    def frozen_networks(self) -> list[keras.Model]:
        """Returns the networks that are part of the model but never trained."""
        return [] if self.averaged_network is None else [self.averaged_network]

    def call(self, inputs: Any, training: bool | None = None) -> Tensor:
        images, _ = checks.indexed(inputs)
        if training:
            logits = folding.training_view(self.network)(images)
        else:
            logits = self.judged_network(images, training=False)
        return ops.cast(logits, "float32")

    # The steps.

    def train_step(self, data: Any) -> dict[str, Tensor]:
        batch, seed = batches.from_data(data), self._seed(TRAINING, self.step)
        result, assigned = self._compute_pass(batch, seed)
        reduced = self._all_reduce(batch, result)
        weight_offsets: dict[int, Tensor] = {}
        if self._perturbs_weights:
            weight_offsets = self.weight_perturbation.perturbations(self.trainable_variables, reduced["gradients"])
            result, assigned = self._compute_pass(batch, seed, result.attack_result, weight_offsets)
            reduced = self._all_reduce(batch, result)
        return self._apply_update(batch, result, reduced, assigned, weight_offsets)

    def test_step(self, data: Any) -> dict[str, Tensor]:
        batch = batches.from_data(data)
        # The number of examples seen so far in this evaluation gives each batch a random start of its own.
        seed = self._seed(TESTING, ops.cast(self.natural_accuracy.count, "int32"))
        values, outputs = self._xla_compiled(self._evaluate_batch)(batch, seed)
        ranges = distribution.all_reduce_sum(distribution.as_replica_row(batch.ranges))
        counts, _ = self.guard.record(0, self._data_rules(batch, outputs), ranges, tf.constant(True), {})
        with revert_unless(counts, self.metrics_variables):
            logs = self._update_metrics(batch, values, outputs)
        return distribution.logs_for_keras({**logs, **self.get_metrics_result()})

    def _compute_pass(self, batch, seed, attack_result=None, weight_offsets=None):
        """Runs attack, forward passes and gradients; assigns nothing.

        Args:
            batch: this replica's `Batch`.
            seed: [2] integers.
            attack_result: as in `Pass`; `None` runs the attack.
            weight_offsets: dictionary from the index of a trainable variable to the tensor added to it.

        Returns:
            (`Pass`, list of the variables that its `states` belong to).
        """
        assigned = []

        def compute(batch, seed, attack_result, weight_offsets, states=()):
            if attack_result is None:
                arguments = batch.images, batch.labels, seed, batch.index
                attack_result = self.perturb(*arguments) if self.has_adversary else (None, 0.0)
            perturbed, epsilon = attack_result
            if not self.trains_on_natural:
                natural = ops.stop_gradient(inference(self.network)(batch.images))
            with (
                tf.GradientTape() as tape,
                StepScope([*self._perturbed_weights(weight_offsets or {}), *states]) as scope,
                inline_functions,
            ):

                def forward(images, updates_statistics=self.statistics == "all"):
                    scope.rewind_seeds()
                    with contextlib.nullcontext() if updates_statistics else scope.discard_updates():
                        return self(images, training=True)

                if self.trains_on_natural:
                    natural = forward(batch.images, self.statistics == "all" or not self.has_adversary)
                adversarial = None if perturbed is None else forward(perturbed, True)
                outputs = Outputs(natural, adversarial, epsilon, batch.index)
                outputs = outputs._replace(images=batch.images, perturbed=perturbed, forward=forward, seed=seed)
                values = self._example_losses(batch, outputs)
                outputs = outputs.per_example()
                loss = self.optimizer.scale_loss(batches.mean(values, batch.real))
            gradients = enumerate(tape.gradient(loss, self.trainable_variables))
            gradients = {number: tf.convert_to_tensor(each) for number, each in gradients if each is not None}
            terms = {"loss": values, **self.loss_terms(batch.labels, outputs)}
            terms = {name: batches.mean(each, batch.real) for name, each in terms.items()}
            assigned[:] = [variable for variable, _ in scope.assigned()]
            states = dict(enumerate(value for _, value in scope.assigned()))
            return Pass(attack_result, values, outputs, terms, gradients, states)

        compute = parts.in_parts(compute, self.accumulate, self.network, self.pairs_neighbours)
        return self._xla_compiled(compute)(batch, seed, attack_result, weight_offsets), assigned

    def _perturbed_weights(self, weight_offsets):
        """Returns pairs of a trainable variable and the tensor to read in its place."""
        perturbed = {number: self.trainable_variables[number] + offset for number, offset in weight_offsets.items()}
        # Inside a scope, regularizers read an unmapped variable as `None`, so it is mapped to itself.
        pairs = enumerate(self.trainable_variables)
        return [
            (each, perturbed.get(number, each)) for number, each in pairs if each.regularizer or number in perturbed
        ]

    def _all_reduce(self, batch, result):
        """Returns the terms, gradients and states averaged over all replicas, and the `ranges` of each replica."""
        means = {"terms": result.terms, "gradients": result.gradients, "states": result.states}
        ranges = distribution.as_replica_row(batch.ranges)
        means, ranges = distribution.all_reduce(means, ranges, tf.reduce_sum(batch.real))
        return {**means, "ranges": ranges}

    def _apply_update(self, batch, result, reduced, assigned, weight_offsets):
        """Updates every variable if the step counts; returns the metrics."""
        gradients, terms, step = reduced["gradients"], reduced["terms"], self.step + 1
        handles_overflow = isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer)
        finite = [terms["loss"], *([] if handles_overflow else gradients.values())]
        finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(each)) for each in finite])
        rules = self._data_rules(batch, result.outputs)
        counts, stopped = self.guard.record(step, rules, reduced["ranges"], finite, terms, self.on_nan == "stop")
        variables = [*self.variables, *self.metrics_variables, *self.optimizer.variables]
        with revert_unless(counts, variables, self._xla_compiled):
            # A layer that assigned a perturbed weight (as SpectralNormalization does) gets it without its offset.
            offsets = {id(self.trainable_variables[number]): offset for number, offset in weight_offsets.items()}
            states = zip(assigned, reduced["states"].values(), strict=True)
            states = [value - offsets[id(each)] if id(each) in offsets else value for each, value in states]
            distribution.assign(assigned, states)
            if self.trainable_variables:
                pairs = [(gradients.get(number), each) for number, each in enumerate(self.trainable_variables)]
                with applying_summed_gradients(self.optimizer, self._xla_compiled):
                    self.optimizer.apply_gradients(pairs)
            else:
                warnings.warn("The model does not have any trainable weights.", stacklevel=2)
            if self.averaged_network is not None:
                start = self.weight_average_start
                averaging.update(self.network, self.averaged_network, self.weight_average, self.step, start)
            self.remember(batch.labels, result.outputs, batch.real)
            logs = self._update_metrics(batch, result.values, result.outputs, without_padding=self.jit_compile)
        distribution.assign([self.step], [tf.where(stopped, step - 1, step)])
        return distribution.logs_for_keras({**logs, **self.get_metrics_result()})

    def _evaluate_batch(self, batch, seed):
        """Returns the [batch] losses and the `Outputs` of a batch in validation."""
        perturbed, adversarial, epsilon = None, None, 0.0
        if self.has_adversary:
            attack = self.validation_attack or self.attack
            perturbed = attack.perturb(inference(self.judged_network), batch.images, losses.hard(batch.labels), seed)
            adversarial, epsilon = self._evaluation_logits(perturbed), attack.threat.epsilon
        natural = self._evaluation_logits(batch.images)
        forward = self._evaluation_logits
        outputs = Outputs(natural, adversarial, epsilon, None, batch.images, perturbed, forward, seed)
        return self._example_losses(batch, outputs), outputs.per_example()

    def _evaluation_logits(self, images):
        return self(images, training=False)

    def _example_losses(self, batch, outputs):
        """Returns the [batch] weighted losses, the network's regularisation losses added to each."""
        labels = batch.labels
        if self.label_smoothing is not None:
            labels = losses.smoothed(labels, outputs.natural.shape[-1], self.label_smoothing)
        # Before `training_loss`, whose own forward passes would replace the losses.
        regularisation = sum(ops.cast(loss, "float32") for loss in self.losses)
        return batch.weights * self.training_loss(labels, outputs) + regularisation

    def _update_metrics(self, batch, values, outputs, without_padding=False):
        """Updates all metrics; returns those of `compile`, which are given no padding.

        Args:
            batch, values, outputs: of the step.
            without_padding: whether the batch is known to have none; XLA could not slice off an unknown number.
        """
        loss = next(each for each in self.metrics if each.name == "loss")  # created by `compile`, before all others
        loss.update_state(values, batch.real)
        labels = losses.hard(batch.labels)
        self.natural_accuracy.update_state(labels, outputs.natural, batch.real)
        if outputs.adversarial is not None:
            self.adversarial_accuracy.update_state(labels, outputs.adversarial, batch.real)
        examples = None if without_padding else tf.cast(tf.reduce_sum(batch.real), "int32")
        arguments = batch.images, batch.labels, outputs.natural, batch.weights
        return self.compute_metrics(*(each[:examples] for each in arguments))

    def _data_rules(self, batch, outputs):
        count = self.num_examples if self.needs_index else None
        return checks.ranges(outputs.natural.shape[-1], count, checks.are_soft(batch.labels))

    def _seed(self, purpose, number):
        seed = tf.random.fold_in(ops.stack([self.seed, purpose]), ops.convert_to_tensor(number))
        return tf.random.fold_in(seed, distribution.replica_id())

    def _xla_compiled(self, function):
        """Returns the function compiled by XLA if `jit_compile` asks for it.

        On one device Keras compiles the whole training step. XLA cannot compile communication between replicas, nor
        slicing the padding off for metrics, so there only what runs between them is compiled.
        """
        return tf.function(function, jit_compile=True, autograph=False) if self._uses_xla else function

    # The interface of `keras.Model`.

    def build(self, input_shape: Any) -> None:
        shape = input_shape[0] if isinstance(input_shape[0], (tuple, list)) else input_shape
        with tf.init_scope():  # Keras may call this while it traces a graph
            if not self.network.built:
                if None in shape[1:]:
                    self.network.build(shape)
                else:  # a call builds all layers of a subclassed network, which `build` does not
                    self.network(ops.zeros((1, *shape[1:])), training=False)
            if self.weight_average is not None and self.averaged_network is None:
                self.averaged_network = averaging.frozen_copy(self.network)
        self.built = True

    def compile(
        self,
        optimizer: keras.optimizers.Optimizer | str = "rmsprop",
        loss: None = None,
        loss_weights: None = None,
        metrics: Any = None,
        *,
        validation_attack: Attack | None = None,
        jit_compile: bool | str = "auto",
        on_nan: str = "stop",
        accumulate: int = 1,
        decay_all: bool = True,
        **kwargs: Any,
    ) -> None:
        """Configures training. Takes the arguments of `keras.Model.compile` except the loss, which the method defines.

        Args:
            optimizer: name or instance.
            loss, loss_weights: must be `None`.
            metrics: metrics of the natural logits, in any form that Keras takes.
            validation_attack: the attack of validation and `evaluate`, which must not run in rounds; by default the
                training attack.
            jit_compile: `True` compiles the training step with XLA, including metrics (on several replicas only attack
                and gradient), and also attacks on the model and its evaluation; `False` compiles nothing, which some
                metrics require; "auto" is `True` on GPUs.
            on_nan: "stop" or "skip", how to treat a step whose loss or gradient is not finite. Such a step leaves
                weights, optimizer, statistics, margins and metrics unchanged on all replicas. With "stop" all later
                steps are skipped too, and `fit` raises an error with the number of the step and the values of the
                loss's parts. This is checked after steps 1, 2, 4, 8, ... of an epoch and at its end, since a check of
                every step would keep a GPU waiting. With "skip" training continues, and the same checks print which
                steps were skipped.
            accumulate: number of equal parts in which a step processes its batch (or each replica its share of it), one
                after another, so that it needs the memory of only one part. There is still one update, by the mean
                gradient of the whole batch, and results are the same up to rounding, except that BatchNormalization
                normalises with the statistics of each part, as it does on replicas, and that Dropout draws other
                numbers. A batch that does not divide evenly is padded with its last examples, which count only in those
                statistics. Validation processes whole batches.
            decay_all: `False` excludes biases, BatchNormalization's parameters and all other weights of rank below 2
                from the optimizer's weight decay, and replaces earlier calls of its `exclude_from_weight_decay`.
            **kwargs: further arguments of `keras.Model.compile`.

        Raises:
            ValueError: a loss was passed; an unknown `on_nan`; an unsuitable `validation_attack`; `accumulate` is not
                positive; several `steps_per_execution`, or an optimizer that accumulates gradients, on several
                replicas; `decay_all=False` with an optimizer that is already built.
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
        self._uses_xla = xla and not kwargs.get("run_eagerly")
        super().compile(optimizer, metrics=metrics, jit_compile=self._uses_xla and replicas == 1, **kwargs)
        self.guard.reset()
        if self.built:
            self._build_all()

    def _build_all(self, shape=None):
        """Creates all variables before any graph is traced, since a step reverts only variables that exist by then."""
        with self.distribute_strategy.scope():
            if not self.built:
                self.build(shape)
            for each in self.frozen_networks():  # setting `trainable` of the whole model has unfrozen them
                averaging.freeze(each)
            if self.compiled:
                compile_by_xla(self.judged_network, self._jit_compile_argument)
            if self.compiled and self.optimizer is not None and not self.optimizer.built:
                if not self.decay_all:  # again after loading: Keras does not save an optimizer's exclusions
                    inner = getattr(self.optimizer, "inner_optimizer", self.optimizer)
                    excluded = [v for v in self.trainable_variables if len(v.shape) < 2 or v.name == "bias"]
                    inner.exclude_from_weight_decay(excluded)
                self.optimizer.build(self.trainable_variables)

    def get_compile_config(self) -> dict[str, Any] | None:
        config = super().get_compile_config()
        attack = keras.saving.serialize_keras_object(self.validation_attack)
        own = {"validation_attack": attack, "jit_compile": self._jit_compile_argument}
        own |= {name: getattr(self, name) for name in ("on_nan", "accumulate", "decay_all")}
        return {**config, **own} if config else config

    def compile_from_config(self, config: dict[str, Any]) -> None:
        self.compile(**keras.saving.deserialize_keras_object(config))

    def fit(self, x: Any = None, y: Any = None, *args: Any, **kwargs: Any) -> keras.callbacks.History:
        arguments = inspect.signature(super().fit).bind(x, y, *args, **kwargs).arguments
        self.guard.reset()
        x = self._check_data(x, y, training=True)
        validation = arguments.get("validation_data")
        if isinstance(validation, (tuple, list)):
            self._check_data(*validation[:2])
        elif validation is not None and not hasattr(validation, "__next__"):  # a generator's first batch would be lost
            several = arguments.get("epochs", 1) > arguments.get("initial_epoch", 0) + 1
            self._check_data(validation, readable_again=several)
        # Keras shuffles arrays on each worker separately: the same seed gives all of them the same order.
        distribution.share_seed(self.distribute_strategy)
        arguments["x"] = distribution.with_default_options(x, self.distribute_strategy)
        arguments["validation_data"] = self._for_evaluation(validation)
        callbacks, own = arguments.get("callbacks"), _EpochCallback()
        if not isinstance(callbacks, keras.callbacks.CallbackList):
            arguments["callbacks"] = [own, *keras.tree.flatten(callbacks or [])]
            return super().fit(**arguments)
        own.set_model(self)
        callbacks.callbacks.insert(0, own)
        try:
            return super().fit(**arguments)
        finally:
            callbacks.callbacks.remove(own)

    def evaluate(self, x: Any = None, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        # Called by `fit`, which has checked the data and passes its callbacks on.
        if any(type(each) is _EpochCallback for each in getattr(kwargs.get("callbacks"), "callbacks", ())):
            self.guard.report()  # raises before validation if training has stopped
        else:
            self.guard.reset()
            x = self._for_evaluation(self._check_data(x, y))
        result = super().evaluate(x, y, *args, **kwargs)
        self.guard.report()
        return result

    def train_on_batch(self, x: ArrayLike, y: ArrayLike | None = None, *args: Any, **kwargs: Any) -> Any:
        self._check_data(x, y, training=True)
        return super().train_on_batch(x, y, *args, **kwargs)

    def test_on_batch(self, x: ArrayLike, y: ArrayLike | None = None, *args: Any, **kwargs: Any) -> Any:
        self._check_data(x, y)
        result = super().test_on_batch(x, y, *args, **kwargs)
        self.guard.report()
        return result

    def _check_data(self, x, y=None, training=False, readable_again=False):
        """Checks the first batch, and builds the model with it; returns the `x` to use from then on.

        The values of a `tf.data.Dataset` are checked only if it is `readable_again`; each step checks its own.

        Raises:
            ValueError: the model cannot use the first batch.
        """
        with self.distribute_strategy.scope():  # the first batch may build the network
            x, first = checks.first_batch(x, y, readable_again)
            images, index, labels, _ = checks.unpacked(first)
            checks.batch(self.network, images, labels)
        self._image_shape = tuple(images.shape if isinstance(images, tf.TypeSpec) else np.shape(images))
        labels = labels if isinstance(labels, tf.TypeSpec) else np.asarray(labels)
        self._soft_label_shape = tuple(labels.shape[1:]) if checks.are_soft(labels) else ()
        self._build_all(self._image_shape)
        for attack in (self.attack, self.validation_attack):
            if isinstance(attack, Attack):
                attack.check_images(self._image_shape)
        if training:
            self.check_training_inputs(images if index is None else (images, index))
        return x

    def _for_evaluation(self, data):
        """Returns the data with default options; a `tf.data.Dataset` is padded to one batch size if XLA is used.

        XLA would compile another program for a smaller last batch.
        """
        data = distribution.with_default_options(data, self.distribute_strategy)
        own = type(self).test_step is AdversarialModel.test_step  # an overridden one does not expect padding
        return pad_batches(data) if self._uses_xla and own and isinstance(data, tf.data.Dataset) else data

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        # Private. To build metrics under a strategy, Keras reads a batch for its shapes and averages the parts of all
        # replicas, which fails if they differ in size (keras-team/keras issue 20585); then it reads the data again.
        images = keras.KerasTensor((None, *self._image_shape[1:]))
        labels = keras.KerasTensor((None, *self._soft_label_shape), "float32" if self._soft_label_shape else "int32")
        super()._maybe_symbolic_build(data_batch=(images, labels))
        # Without a strategy Keras leaves the metrics to the first trace of a step, which would have to be made twice.
        unbuilt = [each for each in self.metrics if not getattr(each, "built", True)]
        if unbuilt and None not in self._image_shape[1:]:
            classes = checks.classes(self.network, np.zeros((1, *self._image_shape[1:]), "float32"))
            for each in unbuilt:
                each.build(labels, keras.KerasTensor((None, classes)))

    @property
    def _perturbs_weights(self):
        """Whether weights are perturbed in the current epoch. A Python boolean: the two cases are traced separately."""
        with tf.init_scope():
            return self.weight_perturbation is not None and int(self.epoch.numpy()) >= self.weight_perturbation.warmup

    def make_train_function(self, force: bool = False) -> None:
        if force or self._has_changed("training") or self.train_function is None:
            super().make_train_function(force=True)
            self._run_step = self.train_function
        calls = itertools.count(1)

        def check_guard():  # after calls 1, 2, 4, 8, ...: reading the guard waits for the device
            number = next(calls)
            if number & (number - 1) == 0:
                self.guard.report()

        self.train_function = call_after_each(self._run_step, check_guard)

    def make_test_function(self, force: bool = False) -> None:
        jit_compile, self.jit_compile = self.jit_compile, False  # only the part in `_xla_compiled` can be compiled
        super().make_test_function(self._has_changed("evaluation") or force)
        self.jit_compile = jit_compile

    def make_predict_function(self, force: bool = False) -> None:
        super().make_predict_function(self._has_changed("prediction") or force)

    def _has_changed(self, kind):
        """Returns whether the network, the method or its attack have changed since the last call.

        Compares the attributes of all constructor arguments except hyperparameters, which are variables and need no
        new trace.
        """
        if self.averaged_network is not None:
            averaging.copy_adapted_state(self.network, self.averaged_network)
        constructors = (each.__init__ for each in type(self).__mro__ if issubclass(each, AdversarialModel))
        names = {name for each in constructors for name in inspect.signature(each).parameters}
        names -= {"self", "network", *hyperparameter.names(self)}
        names |= {"on_nan", "accumulate", "validation_attack", "_perturbs_weights"}
        settings = {name: getattr(self, name, None) for name in names} | {"folding": folding.enabled()}
        if kind == "training":
            settings["trainable"] = [each.trainable for each in (*memory.layers(self), *self.variables)]
        return memory.has_changed(self.network, (kind, id(self)), settings)

    def predict_step(self, data: Any) -> Tensor:
        return self(checks.unpacked(data)[0], training=False)

    def save(self, filepath: Any, *args: Any, **kwargs: Any) -> None:
        if str(filepath).endswith((".h5", ".hdf5")):
            raise ValueError(
                f"`filepath` must end in .keras: an h5 file of a wrapped model cannot be loaded. Received: {filepath}"
            )
        super().save(filepath, *args, **kwargs)

    def export(self, filepath: Any, *args: Any, **kwargs: Any) -> None:
        """Exports `judged_network` with `keras.Model.export`; `keras_mart.export` adds signatures."""
        self.judged_network.export(filepath, *args, **kwargs)

    def get_config(self) -> dict[str, Any]:
        names = "network", "attack", "weight_perturbation", "epsilon_schedule"
        objects = {name: keras.saving.serialize_keras_object(getattr(self, name)) for name in names}
        plain = "seed", "weight_average", "weight_average_start", "label_smoothing", "attack_mode", "statistics", "name"
        return {**objects, **{name: getattr(self, name) for name in plain}}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        with averaging.copies_from_config():
            return cls(**{name: keras.saving.deserialize_keras_object(value) for name, value in config.items()})


def _check_adversary(model, epsilon_schedule, attack_mode, statistics):
    """Raises ValueError if an argument about the adversary is invalid, or has no effect in the method."""
    checks.one_of(attack_mode, ATTACK_MODES, "attack_mode")
    checks.one_of(statistics, STATISTICS, "statistics")
    if not isinstance(epsilon_schedule, keras.optimizers.schedules.LearningRateSchedule | None):
        raise ValueError(
            "`epsilon_schedule` must be a keras.optimizers.schedules.LearningRateSchedule, from steps to a radius. "
            f"Received: epsilon_schedule={epsilon_schedule!r}"
        )
    if epsilon_schedule is not None and not model.has_radius:
        raise ValueError(
            f"`epsilon_schedule` is for methods with one radius for all examples; {type(model).__name__} has none. "
            f"Received: epsilon_schedule={epsilon_schedule!r}"
        )
    if not model.has_adversary and (attack_mode, statistics) != ("evaluation", "all"):
        raise ValueError(
            f"`attack_mode` and `statistics` are for methods with an adversary; {type(model).__name__} has none. "
            f"Received: attack_mode={attack_mode!r}, statistics={statistics!r}"
        )


class _EpochCallback(keras.callbacks.Callback):
    """Sets the model's `epoch`, from 0, and at the end of each epoch reports the steps that were skipped."""

    def on_epoch_begin(self, epoch, logs=None):
        self.model.epoch.assign(epoch)
        self.model.make_train_function()  # weight perturbation may start with this epoch

    def on_epoch_end(self, epoch, logs=None):
        self.model.guard.report()


def call_after_each(function, callback):
    """Wraps a train or test function so that `callback()` runs after each call of it."""

    def run(iterator):
        logs = function(iterator)
        callback()
        return logs

    return run
