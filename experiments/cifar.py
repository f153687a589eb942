"""What figures 1 and 2 have in common: CIFAR-10 with a small network, and how its runs are judged."""

# The paper's network misclassifies an eighth of its training set. A small network after a few epochs misclassifies
# more than half of ten classes; with four it is about a quarter.
SCALE = {"dataset": "tfds:cifar10", "train_examples": 6000, "epochs": 12, "classes": 4}
EVALUATIONS = {
    "pgd20": {"attacks": "pgd20", "examples": 2000},
    "apgd-t": {"attacks": "apgd-t", "examples": 500},
}


def recipe(dataset, epochs):
    """The flags of all runs: a WideResNet of depth 10 and width 1, the official code's ball with its usual steps."""
    return {
        "dataset": dataset, "augment": "crop_flip", "network": "wide_resnet", "depth": 10, "width": 1,
        "precision": "mixed_bfloat16", "epsilon": "8/255", "learning_rate": 0.1, "weight_decay": 5e-4,
        "epochs": epochs, "decay_epochs": f"{epochs * 6 // 10 + 1},{epochs * 8 // 10 + 1}", "validate_every": 2,
    }  # fmt: skip
