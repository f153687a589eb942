"""The training losses and attack objectives, as pure functions of logits: [batch, classes] in, [batch] out.

Logits may come in any float precision; every loss is computed in float32. With p = softmax(natural) and
q = softmax(adversarial), y is the label. The training losses share one order of arguments,
`(labels, natural, adversarial, ...)`, so that a method calls its own by position.

Labels are [batch] integers, or soft: [batch, classes] shares t_k that sum to 1, as MixUp and label smoothing make them.
The training losses of soft labels are the expectation of the loss over a label drawn from t,

    loss(t, ...) = sum over k of t_k loss(k, ...)

which is the only function linear in t that is loss(y, ...) for the one-hot t of y. Margins and ratios of logits, which
attacks climb, take the class with the largest share for the label.
"""

from keras import ops

from keras_mart.checks import are_soft

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
# Subtracted from the label's logit to take it out of a maximum over the other classes.
EXCLUDED = 1e9


def _float32(logits):
    return ops.cast(logits, "float32")


def hard(labels):
    """Returns [batch] int32 labels: of soft ones the class with the largest share."""
    labels = ops.convert_to_tensor(labels)
    if are_soft(labels):
        return ops.argmax(labels, axis=-1)
    return ops.reshape(ops.cast(labels, "int32"), (-1,))


def smoothed(labels, classes, smoothing):
    """Returns [batch, classes] soft labels: (1 - smoothing) t + smoothing / classes.

    Reference: Szegedy et al., arXiv 1512.00567, section 7.
    """
    return (1.0 - smoothing) * shares(labels, classes) + smoothing / classes


def shares(labels, classes):
    """Returns [batch, classes] the share that each class has of the label, 1 of its own where it is an integer."""
    labels = ops.convert_to_tensor(labels)
    return ops.cast(labels, "float32") if are_soft(labels) else ops.one_hot(hard(labels), classes, dtype="float32")


def _of_label(labels, values):
    """[batch] the entry of [batch, classes] values that belongs to the label; of a soft one their mean."""
    return ops.sum(shares(labels, ops.shape(values)[-1]) * values, axis=-1)


def _others(labels, logits):
    """[batch, classes] the logits with the label's own pushed out of reach of a maximum."""
    return logits - EXCLUDED * shares(hard(labels), ops.shape(logits)[-1])


def cross_entropy(labels, logits):
    """CE(p, y) = -log p_y, computed as log(1 + exp(soft margin)).

    Equal to the usual form, but for a confident example, whose 1 - p_y rounds to 0 in float32, its gradient keeps
    the label's part: attacks do not lose their way. Of soft labels it is -sum of t_k log p_k, computed as
    CE(p, y) + z_y - sum of t_k z_k, where y has the largest share.

    Args:
        labels: [batch] integers, or [batch, classes] soft labels.
        logits: [batch, classes].
    """
    value = ops.softplus(soft_margin(labels, logits))
    if not are_soft(ops.convert_to_tensor(labels)):
        return value
    logits = _float32(logits)
    return value + _of_label(hard(labels), logits) - _of_label(labels, logits)


def margin(labels, logits):
    """Logit margin: max over k != y of z_k, minus z_y. Positive where the example is misclassified.

    The objective of Carlini and Wagner (arXiv 1608.04644, f_6), without its confidence offset.
    """
    labels, logits = hard(labels), _float32(logits)
    return ops.max(_others(labels, logits), axis=-1) - _of_label(labels, logits)


def soft_margin(labels, logits):
    """Soft logit margin: logsumexp over k != y of z_k, minus z_y. Negative where p_y > 1/2.

    MMA (arXiv 1812.02637, equation 8): its zero is the boundary that MMA's bisection looks for.
    """
    labels, logits = hard(labels), _float32(logits)
    return ops.logsumexp(_others(labels, logits), axis=-1) - _of_label(labels, logits)


def dlr(labels, logits):
    """Difference of logits ratio: the logit margin over the gap between the largest and the third largest logit.

    Like the margin, positive where the example is misclassified; unlike it and the cross-entropy, unchanged when all
    logits are multiplied by one factor.

    Differences: with 2 classes, where there is no third logit, the margin itself.

    Reference: Croce and Hein, arXiv 2003.01690, equation 6.
    """
    logits = _float32(logits)
    if logits.shape[-1] < 3:
        return margin(labels, logits)
    largest = ops.top_k(logits, 3)[0]
    return margin(labels, logits) / (largest[:, 0] - largest[:, 2] + RATIO_OFFSET)


def targeted_dlr(labels, logits, targets):
    """Targeted difference of logits ratio: (z_t - z_y) / (z_1st - (z_3rd + z_4th) / 2), t the target.

    Differences: with 2 or 3 classes, where there is no fourth logit, the difference z_t - z_y itself.

    Args:
        labels: [batch] integers.
        logits: [batch, classes].
        targets: [batch] integers, other than the labels.

    Reference: Croce and Hein, arXiv 2003.01690, equation 7.
    """
    logits = _float32(logits)
    difference = logit_difference(labels, logits, targets)
    if logits.shape[-1] < 4:
        return difference
    largest = ops.top_k(logits, 4)[0]
    return difference / (largest[:, 0] - (largest[:, 2] + largest[:, 3]) / 2 + RATIO_OFFSET)


def logit_difference(labels, logits, targets):
    """z_t - z_y, the target's logit minus the label's: zero at the boundary between the two classes."""
    logits = _float32(logits)
    return _of_label(targets, logits) - _of_label(hard(labels), logits)


def kl_divergence(natural, adversarial):
    """KL(p, q) = sum over k of p_k log(p_k / q_k). Gradients flow through both arguments."""
    log_p = ops.log_softmax(_float32(natural))
    log_q = ops.log_softmax(_float32(adversarial))
    return ops.sum(ops.exp(log_p) * (log_p - log_q), axis=-1)


def boosted_cross_entropy(labels, adversarial):
    """BCE(q, y) = -log q_y - log(1 - max over k != y of q_k), MART's first term.

    The maximum is the largest probability, q_1st, unless that is the label's own; then it is the second, q_2nd. So for
    soft labels, where t_1st is the share of the most probable class,

        sum over k of t_k BCE(q, k) = CE(q, t) - (1 - t_1st) log(1 - q_1st) - t_1st log(1 - q_2nd)

    Differences: none from the official code but for its 1e-12 inside the logarithms, which the 1.0001 it
    writes for 1 makes unneeded.
    """
    probabilities = ops.softmax(_float32(adversarial))
    top = ops.argmax(probabilities, axis=-1)
    first, second = _of_label(top, probabilities), ops.max(_others(top, probabilities), axis=-1)
    share = _of_label(top, shares(labels, ops.shape(probabilities)[-1]))
    boost = (1.0 - share) * ops.log(BOOST_OFFSET - first) + share * ops.log(BOOST_OFFSET - second)
    return cross_entropy(labels, adversarial) - boost


def misclassification_weight(labels, natural):
    """1 - p_y, MART's weight: near 1 where the natural example is misclassified; of soft labels 1 - sum of t_k p_k."""
    return 1.0 - _of_label(labels, ops.softmax(_float32(natural)))


def mart(labels, natural, adversarial, beta):
    """MART: BCE(q, y) + beta * KL(p, q) * (1 - p_y).

    Nothing is detached: gradients flow through p in the divergence and in the weight, as in the official code.

    Soft labels t, which the paper does not have: the divergence does not depend on the label, and the weight is linear
    in it, so that the expectation over labels drawn from t is BCE(q, t) + beta * KL(p, q) * (1 - sum of t_k p_k), with
    BCE(q, t) as `boosted_cross_entropy` derives it. A one-hot t gives the paper's form.

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


def trades(labels, natural, adversarial, beta):
    """TRADES: CE(p, y) + beta * KL(p, q), with the gradient through both p and q.

    Reference: Zhang et al., arXiv 1901.08573, equation 5 with its code's choice of the surrogate loss.
    """
    return cross_entropy(labels, natural) + beta * kl_divergence(natural, adversarial)


def squared_distance(left, right):
    """Squared L2 distance over classes: sum over k of (left_k - right_k)^2."""
    return ops.sum(ops.square(_float32(left) - _float32(right)), axis=-1)


def _probability_distance(natural, adversarial):
    return squared_distance(ops.softmax(_float32(natural)), ops.softmax(_float32(adversarial)))


def alp(labels, natural, adversarial, beta):
    """ALP as the MART paper tabulates it: CE(q, y) + beta * |p - q|^2, on probabilities (its table 1)."""
    return cross_entropy(labels, adversarial) + beta * _probability_distance(natural, adversarial)


def alp_original(labels, natural, adversarial, beta):
    """ALP as its own paper has it: (CE(p, y) + CE(q, y)) / 2 + beta * squared distance of the logits.

    Differences: the official code attacks a least-likely target and smooths labels; the paper, followed here,
    does neither.

    Reference: Kannan et al., arXiv 1803.06373.
    """
    mixed = (cross_entropy(labels, natural) + cross_entropy(labels, adversarial)) / 2
    return mixed + beta * squared_distance(natural, adversarial)


def clp(labels, natural, adversarial, beta):
    """CLP as the MART paper tabulates it: CE(p, y) + beta * |p - q|^2, on probabilities (its table 1)."""
    return cross_entropy(labels, natural) + beta * _probability_distance(natural, adversarial)


def clp_original(labels, natural, noisy, beta):
    """CLP as its own paper has it: CE(noisy) + beta * squared distance of the logits of pairs of examples.

    The pairs are neighbours (0, 1), (2, 3), ...; a shuffled batch makes them random, and an even split over
    replicas keeps them together. The odd one out has no partner and no pairing term.

    Args:
        labels: [batch] integers.
        natural: unused, there to keep the common order of arguments.
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


def mma(labels, natural, adversarial, epsilon, max_epsilon):
    """MMA: CE(p, y) / 3 + 2/3 * CE(q, y) * [epsilon < max_epsilon].

    `adversarial` are logits at the boundary found for a correct example, on the natural image itself for a
    misclassified one (whose epsilon is 0). An example whose boundary lies at or beyond `max_epsilon` is far
    enough and adds nothing.

    Args:
        labels: [batch] integers.
        natural: [batch, classes] logits on the natural images.
        adversarial: [batch, classes] logits at the boundary.
        epsilon: scalar or [batch], the distance of the boundary.
        max_epsilon: the hinge, d_max of the paper.

    Reference: Ding et al., arXiv 1812.02637, equation 10, with the constants of its official code.
    """
    near = ops.cast(ops.convert_to_tensor(epsilon) < max_epsilon, "float32")
    boundary = cross_entropy(labels, adversarial) * near
    return MMA_NATURAL_SHARE * cross_entropy(labels, natural) + (1 - MMA_NATURAL_SHARE) * boundary


def hat(labels, natural, adversarial, helper, helper_labels, beta, gamma):
    """HAT: CE(p, y) + beta * KL(p, q) + gamma * CE(helper, k), with the gradient through all logits.

    Args:
        labels: [batch] integers, or [batch, classes] soft labels.
        natural, adversarial: [batch, classes] logits on the natural and the adversarial images.
        helper: [batch, classes] logits on the helper images.
        helper_labels: [batch] integers k, what the teacher takes the adversarial images for.
        beta, gamma: weights of the second and the third term.

    Reference: Rade and Moosavi-Dezfooli, arXiv 2203.13639, with the order of terms of its official code.
    """
    return trades(labels, natural, adversarial, beta) + gamma * cross_entropy(helper_labels, helper)


def soft_cross_entropy(natural, adversarial):
    """-sum over k of p_k log q_k, with p held fixed: its gradient is that of KL(p, q) with respect to q."""
    fixed = ops.stop_gradient(ops.softmax(_float32(natural)))
    return -ops.sum(fixed * ops.log_softmax(_float32(adversarial)), axis=-1)


def weighted_pair_distance(labels, natural, adversarial, class_means):
    """Sum over i, j of m_i m_j ((z_i - z_j) - (z'_i - z'_j))^2 / 4, m being the class mean of the label.

    As the m_i sum to 1, that is half the variance, under m, of the classes' differences d = z - z': no [classes,
    classes] values for each example. For soft labels t it is sum over k of t_k Var(d under m of k), computed as the
    variance under the mixture of the m less that of their means.

    Args:
        labels: [batch] integers, or [batch, classes] soft labels.
        natural, adversarial: [batch, classes] logits z, z'.
        class_means: [classes, classes], a row m for each label, which sums to 1.
    """
    of_classes = shares(labels, ops.shape(natural)[-1])
    mixture = ops.matmul(of_classes, class_means)
    difference = _float32(natural) - _float32(adversarial)
    centred = difference - ops.sum(mixture * difference, axis=-1, keepdims=True)
    between = ops.sum(of_classes * ops.square(ops.matmul(centred, ops.transpose(class_means))), axis=-1)
    return (ops.sum(mixture * ops.square(centred), axis=-1) - between) / 2


def dkl(labels, natural, adversarial, class_means, alpha, beta):
    """DKL: CE(p, y) + alpha * CE(p held fixed, q) + beta * `weighted_pair_distance`.

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


def rslad(labels, natural, adversarial, teacher, alpha):
    """RSLAD: (1 - alpha) * KL(t, p) + alpha * KL(t, q), t = softmax(teacher) being held fixed.

    Args:
        labels: unused, there to keep the common order of arguments.
        natural, adversarial: [batch, classes] logits on the natural and the adversarial images.
        teacher: [batch, classes] logits of the teacher on the natural images.
        alpha: share of the adversarial images.

    Reference: Zi et al., arXiv 2108.07969, equation 6.
    """
    teacher = ops.stop_gradient(teacher)
    return (1 - alpha) * kl_divergence(teacher, natural) + alpha * kl_divergence(teacher, adversarial)


def misalignment(left, right):
    """[batch] 1 - cos of the angle between [batch, ...] gradients, 0 where one of them is 0."""
    axes = tuple(range(1, len(left.shape)))

    def direction(gradient):  # scaled before it is squared, where small ones would underflow
        largest = ops.stop_gradient(ops.max(ops.abs(gradient), axis=axes, keepdims=True))
        scaled = gradient / ops.where(largest > 0, largest, 1.0)
        length = ops.sum(ops.square(scaled), axis=axes, keepdims=True)
        return scaled / ops.sqrt(ops.where(largest > 0, length, 1.0)), ops.reshape(largest > 0, (-1,))

    (left, one), (right, other) = direction(left), direction(right)
    return ops.where(one & other, 1.0 - ops.sum(left * right, axis=axes), 0.0)


def grad_align(labels, natural, adversarial, gradient, nearby_gradient, beta):
    """GradAlign: CE(q, y) + beta * (1 - cos of the angle between the gradients of the cross-entropy at two images).

    Args:
        labels: [batch] integers, or [batch, classes] soft labels.
        natural: unused, there to keep the common order of arguments.
        adversarial: [batch, classes] logits on the adversarial images.
        gradient, nearby_gradient: [batch, ...] gradients with respect to the image, at x and at a point nearby.
        beta: weight of the second term.

    Reference: Andriushchenko and Flammarion, arXiv 2007.02617, equation 3.
    """
    return cross_entropy(labels, adversarial) + beta * misalignment(gradient, nearby_gradient)
