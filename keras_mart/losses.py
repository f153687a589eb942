"""Training losses and attack objectives, as pure functions from [batch, classes] logits to [batch] values.

Logits may have any float precision; every loss is computed in float32. In the formulas p = softmax(natural),
q = softmax(adversarial), and y is the label. The training losses have the same order of arguments,
`(labels, natural, adversarial, ...)`, and are called by position.

Labels are [batch] integers, or soft: [batch, classes] shares t_k that sum to 1, as MixUp and label smoothing produce.
For soft labels a training loss is the expectation over a label drawn from t,

    loss(t, ...) = sum over k of t_k loss(k, ...)

which is the only function linear in t that equals loss(y, ...) for the one-hot t of y. Margins and ratios of logits,
the objectives of attacks, use the class with the largest share as the label.
"""

from keras import ops

from keras_mart.checks import are_soft
from keras_mart.typing import ArrayLike, Scalar, Tensor

__all__ = [
    "alp",
    "alp_original",
    "boosted_cross_entropy",
    "clp",
    "clp_original",
    "cross_entropy",
    "dkl",
    "dlr",
    "grad_align",
    "hard",
    "hat",
    "kl_divergence",
    "logit_difference",
    "margin",
    "mart",
    "misalignment",
    "misclassification_weight",
    "mma",
    "rslad",
    "shares",
    "smoothed",
    "soft_cross_entropy",
    "soft_margin",
    "squared_distance",
    "targeted_dlr",
    "trades",
    "weighted_pair_distance",
]

# The official MART code keeps log(1 - q) finite with this offset (github.com/YisenWang/MART, mart.py).
BOOST_OFFSET = 1.0001
# Keeps the ratios of logit differences finite (github.com/fra31/auto-attack, autopgd_base.py).
RATIO_OFFSET = 1e-12
# Subtracted from the label's logit to exclude it from a maximum over the classes.
EXCLUDED = 1e9


def _float32(logits):
    return ops.cast(logits, "float32")


def hard(labels: ArrayLike) -> Tensor:
    """Returns [batch] int32 labels: for soft labels the class with the largest share."""
    labels = ops.convert_to_tensor(labels)
    if are_soft(labels):
        return ops.argmax(labels, axis=-1)
    labels = ops.cast(labels, "int32")
    return labels if len(labels.shape) == 1 else ops.reshape(labels, (-1,))


def smoothed(labels: ArrayLike, classes: int, smoothing: Scalar) -> Tensor:
    """Returns [batch, classes] soft labels: (1 - smoothing) t + smoothing / classes.

    Reference: Szegedy et al., arXiv 1512.00567, section 7.
    """
    return (1.0 - smoothing) * shares(labels, classes) + smoothing / classes


def shares(labels: ArrayLike, classes: int) -> Tensor:
    """Returns the [batch, classes] shares of soft labels; integer labels are one-hot encoded."""
    labels = ops.convert_to_tensor(labels)
    return ops.cast(labels, "float32") if are_soft(labels) else ops.one_hot(hard(labels), classes, dtype="float32")


def _shares_for(labels, values):
    """Returns the `shares` of labels for [batch, classes] values, whose number of classes may be unknown in a graph."""
    return shares(labels, values.shape[-1] or ops.shape(values)[-1])


def _one_hot(labels, logits):
    """Returns [batch, classes]: 1 at the label, 0 elsewhere. Of soft labels the largest share counts as the label."""
    return _shares_for(hard(labels), logits)


def _mean(label_shares, values):
    """Returns the [batch] means of [batch, classes] values, weighted by shares of the same shape."""
    return ops.sum(label_shares * values, axis=-1)


def _without(one_hot, logits):
    """Returns the [batch, classes] logits with that of the label lowered, so that it is never the maximum."""
    return logits - EXCLUDED * one_hot


def cross_entropy(labels: ArrayLike, logits: ArrayLike) -> Tensor:
    """Computes the cross-entropy, CE(p, y) = -log p_y, as log(1 + exp(soft margin)).

    This equals the usual form, but keeps the label's part of the gradient for a confident example, whose 1 - p_y rounds
    to 0 in float32, so that attacks can still follow it. For soft labels it is -sum of t_k log p_k, computed as
    CE(p, y) + z_y - sum of t_k z_k, where y has the largest share.

    Args:
        labels: [batch] integers, or [batch, classes] soft labels.
        logits: [batch, classes].
    """
    value = ops.softplus(soft_margin(labels, logits))
    if not are_soft(ops.convert_to_tensor(labels)):
        return value
    logits = _float32(logits)
    return value + _mean(_one_hot(labels, logits), logits) - _mean(_shares_for(labels, logits), logits)


def margin(labels: ArrayLike, logits: ArrayLike) -> Tensor:
    """Computes the logit margin: max over k != y of z_k, minus z_y. Positive if the example is misclassified.

    The objective of Carlini and Wagner (arXiv 1608.04644, f_6), without its confidence offset.
    """
    logits = _float32(logits)
    label = _one_hot(labels, logits)
    return ops.max(_without(label, logits), axis=-1) - _mean(label, logits)


def soft_margin(labels: ArrayLike, logits: ArrayLike) -> Tensor:
    """Computes the soft logit margin: logsumexp over k != y of z_k, minus z_y. Negative if p_y > 1/2.

    MMA (arXiv 1812.02637, equation 8) searches for its zero by bisection.
    """
    logits = _float32(logits)
    label = _one_hot(labels, logits)
    return ops.logsumexp(_without(label, logits), axis=-1) - _mean(label, logits)


def dlr(labels: ArrayLike, logits: ArrayLike) -> Tensor:
    """Computes the difference of logits ratio (DLR): the logit margin over the largest minus the third largest logit.

    Positive if the example is misclassified, like the margin; unlike margin and cross-entropy, it does not change if
    all logits are multiplied by the same factor.

    Differences: with 2 classes, where there is no third logit, it is the margin.

    Reference: Croce and Hein, arXiv 2003.01690, equation 6.
    """
    logits = _float32(logits)
    if logits.shape[-1] < 3:
        return margin(labels, logits)
    largest = ops.top_k(logits, 3)[0]
    return margin(labels, logits) / (largest[:, 0] - largest[:, 2] + RATIO_OFFSET)


def targeted_dlr(labels: ArrayLike, logits: ArrayLike, targets: ArrayLike) -> Tensor:
    """Computes the targeted DLR: (z_t - z_y) / (z_1st - (z_3rd + z_4th) / 2), where t is the target.

    Differences: with 2 or 3 classes, where there is no fourth logit, it is the difference z_t - z_y.

    Args:
        labels: [batch] integers.
        logits: [batch, classes].
        targets: [batch] integers that differ from the labels.

    Reference: Croce and Hein, arXiv 2003.01690, equation 7.
    """
    logits = _float32(logits)
    difference = logit_difference(labels, logits, targets)
    if logits.shape[-1] < 4:
        return difference
    largest = ops.top_k(logits, 4)[0]
    return difference / (largest[:, 0] - (largest[:, 2] + largest[:, 3]) / 2 + RATIO_OFFSET)


def logit_difference(labels: ArrayLike, logits: ArrayLike, targets: ArrayLike) -> Tensor:
    """Computes the logit difference of target and label, z_t - z_y: zero at the boundary between the two classes."""
    logits = _float32(logits)
    return _mean(_one_hot(targets, logits), logits) - _mean(_one_hot(labels, logits), logits)


def kl_divergence(natural: ArrayLike, adversarial: ArrayLike) -> Tensor:
    """Computes KL(p, q) = sum over k of p_k log(p_k / q_k). Gradients flow through both arguments."""
    log_p = ops.log_softmax(_float32(natural))
    log_q = ops.log_softmax(_float32(adversarial))
    return ops.sum(ops.exp(log_p) * (log_p - log_q), axis=-1)


def boosted_cross_entropy(labels: ArrayLike, adversarial: ArrayLike) -> Tensor:
    """Computes the boosted cross-entropy, MART's first term: BCE(q, y) = -log q_y - log(1 - max over k != y of q_k).

    The maximum is the largest probability, q_1st, unless that belongs to the label; then it is the second, q_2nd. For
    soft labels, where t_1st is the share of the most probable class, this gives

        sum over k of t_k BCE(q, k) = CE(q, t) - (1 - t_1st) log(1 - q_1st) - t_1st log(1 - q_2nd)

    Differences from the official code: only its 1e-12 inside the logarithms, which its 1.0001 in place of 1 makes
    unnecessary.
    """
    probabilities = ops.softmax(_float32(adversarial))
    top = _one_hot(probabilities, probabilities)
    first, second = _mean(top, probabilities), ops.max(_without(top, probabilities), axis=-1)
    share = _mean(top, _shares_for(labels, probabilities))
    boost = (1.0 - share) * ops.log(BOOST_OFFSET - first) + share * ops.log(BOOST_OFFSET - second)
    return cross_entropy(labels, adversarial) - boost


def misclassification_weight(labels: ArrayLike, natural: ArrayLike) -> Tensor:
    """Computes MART's weight: 1 - p_y, near 1 for a misclassified example; for soft labels 1 - sum of t_k p_k."""
    probabilities = ops.softmax(_float32(natural))
    return 1.0 - _mean(_shares_for(labels, probabilities), probabilities)


def mart(labels: ArrayLike, natural: ArrayLike, adversarial: ArrayLike, beta: Scalar) -> Tensor:
    """Computes the MART loss: BCE(q, y) + beta * KL(p, q) * (1 - p_y).

    Nothing is detached: gradients flow through p in the divergence and in the weight, as in the official code.

    Soft labels t are not in the paper. The divergence does not depend on the label and the weight is linear in it, so
    that the expectation over labels drawn from t is BCE(q, t) + beta * KL(p, q) * (1 - sum of t_k p_k), with BCE(q, t)
    as in `boosted_cross_entropy`. A one-hot t gives the paper's form.

    Args:
        labels: [batch] integers, or [batch, classes] soft labels.
        natural: [batch, classes] logits on the natural images.
        adversarial: [batch, classes] logits on the adversarial images.
        beta: weight of the second term; the paper uses 5 (ResNet-18) and 6 (WRN-34-10).

    Returns:
        [batch] losses.

    Reference: Wang et al., ICLR 2020 (OpenReview rklOg6EFwS), equation 11.
    """
    weighted_divergence = kl_divergence(natural, adversarial) * misclassification_weight(labels, natural)
    return boosted_cross_entropy(labels, adversarial) + beta * weighted_divergence


def trades(labels: ArrayLike, natural: ArrayLike, adversarial: ArrayLike, beta: Scalar) -> Tensor:
    """Computes the TRADES loss: CE(p, y) + beta * KL(p, q), with gradients through both p and q.

    Reference: Zhang et al., arXiv 1901.08573, equation 5 with the surrogate loss of its official code.
    """
    return cross_entropy(labels, natural) + beta * kl_divergence(natural, adversarial)


def squared_distance(left: ArrayLike, right: ArrayLike) -> Tensor:
    """Computes the squared L2 distance over classes: sum over k of (left_k - right_k)^2."""
    return ops.sum(ops.square(_float32(left) - _float32(right)), axis=-1)


def _probability_distance(natural, adversarial):
    return squared_distance(ops.softmax(_float32(natural)), ops.softmax(_float32(adversarial)))


def alp(labels: ArrayLike, natural: ArrayLike, adversarial: ArrayLike, beta: Scalar) -> Tensor:
    """Computes the ALP loss of the MART paper's table 1: CE(q, y) + beta * |p - q|^2, on probabilities."""
    return cross_entropy(labels, adversarial) + beta * _probability_distance(natural, adversarial)


def alp_original(labels: ArrayLike, natural: ArrayLike, adversarial: ArrayLike, beta: Scalar) -> Tensor:
    """Computes the ALP loss of its own paper: (CE(p, y) + CE(q, y)) / 2 + beta * squared distance of the logits.

    Differences: the official code attacks a least-likely target and smooths labels; this follows the paper, which does
    neither.

    Reference: Kannan et al., arXiv 1803.06373.
    """
    mixed = (cross_entropy(labels, natural) + cross_entropy(labels, adversarial)) / 2
    return mixed + beta * squared_distance(natural, adversarial)


def clp(labels: ArrayLike, natural: ArrayLike, adversarial: ArrayLike, beta: Scalar) -> Tensor:
    """Computes the CLP loss of the MART paper's table 1: CE(p, y) + beta * |p - q|^2, on probabilities."""
    return cross_entropy(labels, natural) + beta * _probability_distance(natural, adversarial)


def clp_original(labels: ArrayLike, natural: ArrayLike, noisy: ArrayLike, beta: Scalar) -> Tensor:
    """Computes the CLP loss of its own paper: CE(noisy) + beta * squared distance of the logits of pairs of examples.

    The pairs are neighbours (0, 1), (2, 3), ...: random in a shuffled batch, and kept together by an even split over
    replicas. In a batch of odd size the last example has no partner and no pairing term.

    Args:
        labels: [batch] integers.
        natural: unused, for the common order of arguments.
        noisy: [batch, classes] logits on images with Gaussian noise.
        beta: weight of the pairing term.

    Reference: Kannan et al., arXiv 1803.06373.
    """
    index = ops.arange(ops.shape(noisy)[0])
    partner = ops.minimum(index + 1 - 2 * (index % 2), ops.shape(noisy)[0] - 1)
    paired = squared_distance(noisy, ops.take(noisy, partner, axis=0))
    return cross_entropy(labels, noisy) + beta * paired


# Share of the natural cross-entropy in MMA's loss (official code, clean_loss_coeff).
MMA_NATURAL_SHARE = 1 / 3


def mma(
    labels: ArrayLike, natural: ArrayLike, adversarial: ArrayLike, epsilon: Scalar | ArrayLike, max_epsilon: Scalar
) -> Tensor:
    """Computes the MMA loss: CE(p, y) / 3 + 2/3 * CE(q, y) * [epsilon < max_epsilon].

    For a correctly classified example, `adversarial` are the logits at the boundary found; for a misclassified one,
    whose epsilon is 0, those of the natural image. An example whose boundary lies at or beyond `max_epsilon` adds no
    boundary term.

    Args:
        labels: [batch] integers.
        natural: [batch, classes] logits on the natural images.
        adversarial: [batch, classes] logits at the boundary.
        epsilon: scalar or [batch], the distance to the boundary.
        max_epsilon: the hinge threshold, d_max in the paper.

    Reference: Ding et al., arXiv 1812.02637, equation 10, with the constants of its official code.
    """
    near = ops.cast(ops.convert_to_tensor(epsilon) < max_epsilon, "float32")
    boundary = cross_entropy(labels, adversarial) * near
    return MMA_NATURAL_SHARE * cross_entropy(labels, natural) + (1 - MMA_NATURAL_SHARE) * boundary


def hat(
    labels: ArrayLike, natural: ArrayLike, adversarial: ArrayLike, helper: ArrayLike, helper_labels: ArrayLike,
    beta: Scalar, gamma: Scalar,
) -> Tensor:  # fmt: skip
    """Computes the HAT loss: CE(p, y) + beta * KL(p, q) + gamma * CE(helper, k), with gradients through all logits.

    Args:
        labels: [batch] integers, or [batch, classes] soft labels.
        natural, adversarial: [batch, classes] logits on the natural and the adversarial images.
        helper: [batch, classes] logits on the helper images.
        helper_labels: [batch] integers k, the classes that the teacher predicts for the adversarial images.
        beta, gamma: weights of the second and the third term.

    Reference: Rade and Moosavi-Dezfooli, arXiv 2203.13639, with the order of terms of its official code.
    """
    return trades(labels, natural, adversarial, beta) + gamma * cross_entropy(helper_labels, helper)


def soft_cross_entropy(natural: ArrayLike, adversarial: ArrayLike) -> Tensor:
    """Computes the cross-entropy with soft targets: -sum over k of p_k log q_k, with p held fixed.

    Its gradient is that of KL(p, q) with respect to q.
    """
    fixed = ops.stop_gradient(ops.softmax(_float32(natural)))
    return -ops.sum(fixed * ops.log_softmax(_float32(adversarial)), axis=-1)


def weighted_pair_distance(
    labels: ArrayLike, natural: ArrayLike, adversarial: ArrayLike, class_means: Tensor
) -> Tensor:
    """Computes sum over i, j of m_i m_j ((z_i - z_j) - (z'_i - z'_j))^2 / 4, where m is the class mean of the label.

    Since the m_i sum to 1, this is half the variance, under m, of the differences d = z - z'; it is computed in this
    form, without [classes, classes] values for each example. For soft labels t it is half the sum over k of t_k Var(d
    under m of k), computed as the variance under the mixture of the m minus the variance of their means.

    Args:
        labels: [batch] integers, or [batch, classes] soft labels.
        natural, adversarial: [batch, classes] logits z, z'.
        class_means: [classes, classes], for each label a row m that sums to 1.
    """
    label_shares = shares(labels, class_means.shape[-1])
    mixture = ops.matmul(label_shares, class_means)
    difference = _float32(natural) - _float32(adversarial)
    centred = difference - ops.sum(mixture * difference, axis=-1, keepdims=True)
    between = ops.sum(label_shares * ops.square(ops.matmul(centred, ops.transpose(class_means))), axis=-1)
    return (ops.sum(mixture * ops.square(centred), axis=-1) - between) / 2


def dkl(
    labels: ArrayLike, natural: ArrayLike, adversarial: ArrayLike, class_means: Tensor, alpha: Scalar, beta: Scalar
) -> Tensor:
    """Computes the DKL loss: CE(p, y) + alpha * CE(p held fixed, q) + beta * `weighted_pair_distance`.

    Args:
        labels: [batch] integers, or [batch, classes] soft labels.
        natural, adversarial: [batch, classes] logits on the natural and the adversarial images.
        class_means: [classes, classes], the mean of softmax(natural / temperature) over the examples of each class.
        alpha, beta: weights of the second and the third term.

    Reference: Cui et al., arXiv 2305.13948 (the loss it calls IKL), with the constants of its official code.
    """
    robust = alpha * soft_cross_entropy(natural, adversarial)
    return (
        cross_entropy(labels, natural)
        + robust
        + beta * weighted_pair_distance(labels, natural, adversarial, class_means)
    )


def rslad(labels: ArrayLike, natural: ArrayLike, adversarial: ArrayLike, teacher: ArrayLike, alpha: Scalar) -> Tensor:
    """Computes the RSLAD loss: (1 - alpha) * KL(t, p) + alpha * KL(t, q), with t = softmax(teacher) held fixed.

    Args:
        labels: unused, for the common order of arguments.
        natural, adversarial: [batch, classes] logits on the natural and the adversarial images.
        teacher: [batch, classes] logits of the teacher on the natural images.
        alpha: weight of the adversarial term.

    Reference: Zi et al., arXiv 2108.07969, equation 6.
    """
    teacher = ops.stop_gradient(teacher)
    return (1 - alpha) * kl_divergence(teacher, natural) + alpha * kl_divergence(teacher, adversarial)


def misalignment(left: Tensor, right: Tensor) -> Tensor:
    """Returns [batch] 1 - cos of the angle between [batch, ...] gradients, 0 if one of them is 0."""
    axes = tuple(range(1, len(left.shape)))

    def direction(gradient):  # scaled first, since squares of small values would underflow
        largest = ops.stop_gradient(ops.max(ops.abs(gradient), axis=axes, keepdims=True))
        scaled = gradient / ops.where(largest > 0, largest, 1.0)
        length = ops.sum(ops.square(scaled), axis=axes, keepdims=True)
        return scaled / ops.sqrt(ops.where(largest > 0, length, 1.0)), ops.reshape(largest > 0, (-1,))

    (left, left_defined), (right, right_defined) = direction(left), direction(right)
    return ops.where(left_defined & right_defined, 1.0 - ops.sum(left * right, axis=axes), 0.0)


def grad_align(
    labels: ArrayLike, natural: ArrayLike, adversarial: ArrayLike, gradient: Tensor, nearby_gradient: Tensor,
    beta: Scalar,
) -> Tensor:  # fmt: skip
    """Computes the GradAlign loss: CE(q, y) + beta * (1 - cos of the angle between the gradients at two images).

    Args:
        labels: [batch] integers, or [batch, classes] soft labels.
        natural: unused, for the common order of arguments.
        adversarial: [batch, classes] logits on the adversarial images.
        gradient, nearby_gradient: [batch, ...] gradients of the cross-entropy with respect to the image, at x and at a
            nearby point.
        beta: weight of the second term.

    Reference: Andriushchenko and Flammarion, arXiv 2007.02617, equation 3.
    """
    return cross_entropy(labels, adversarial) + beta * misalignment(gradient, nearby_gradient)
