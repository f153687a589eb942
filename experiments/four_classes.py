"""Settings that figures 1 and 2 share: four classes of CIFAR-10, a small network, the evaluations."""

# A small network misclassifies most images of ten classes after a few epochs: S- would be most of the training set.
SCALE = {"dataset": "tfds:cifar10", "train_examples": 5000, "epochs": 8, "classes": 4}
EVALUATIONS = {
    "pgd20": {"attacks": "pgd20", "examples": 2000},
    "apgd-t": {"attacks": "apgd-t", "examples": 300},
}


def recipe(dataset, epochs):
    """Returns the flags of all runs: a WideResNet of depth 10 and width 1, epsilon 8/255, steps of 2/255."""
    return {
        "dataset": dataset, "augment": "crop_flip", "network": "wide_resnet", "depth": 10, "width": 1,
        "precision": "mixed_bfloat16", "epsilon": "8/255", "batch_size": 64, "learning_rate": 0.1, "weight_decay": 5e-4,
        "epochs": epochs, "decay_epochs": f"{epochs * 6 // 10 + 1},{epochs * 9 // 10 + 1}", "validate_every": 2,
    }  # fmt: skip
