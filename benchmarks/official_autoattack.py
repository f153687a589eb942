"""A child process that measures the unmodified official AutoAttack on the network written by `evaluation.export`.

It imports neither TensorFlow nor keras_mart, so it runs in any Python with PyTorch. The official code is not part of
this package: it is imported from a checkout of github.com/fra31/auto-attack.
"""

import re
import sys
import time

import numpy as np
import torch

from benchmarks import measure, official

LARGEST_DIFFERENCE = 1e-4  # allowed between the two networks' logits


class Clock:
    """Replaces the official code's logger: records the end of each stage and the robust accuracy after it."""

    def __init__(self):
        self.rows, self._before = [], None

    def log(self, text):
        now = time.perf_counter()
        if re.match("initial accuracy", text):
            self._before = now
        if ended := re.match(r"robust accuracy after (\S+): ([\d.]+)%", text):
            self.rows.append({"attack": ended[1].lower(), "seconds": now - self._before, "left": float(ended[2]) / 100})
            self._before = now
            measure.send({"rows": self.rows})  # the answer if time runs out before the last stage


def copied(network, arrays):
    """Loads the weights of `networks.pytorch_weights` into the network and returns it."""
    layers = [each for each in network.modules() if not list(each.children()) and each.state_dict()]
    for number, layer in enumerate(layers):
        for place, tensor in enumerate(layer.state_dict().values()):
            if (name := f"{number}_{place}") in arrays:  # not for PyTorch's counter of batches
                array = torch.from_numpy(arrays[name])
                if array.shape != tensor.shape:
                    raise ValueError(f"{layer} must have weights of shape {tensor.shape}. Received: {array.shape}")
                tensor.copy_(array)
    return network


def attack(checkout, path, network, norm, epsilon, batch_size, seed):
    """Returns a row with the seconds of each stage, the total seconds, and the largest difference of the logits."""
    sys.path.insert(0, checkout)
    from autoattack import AutoAttack

    device = "cuda" if torch.cuda.is_available() else "cpu"
    with np.load(path) as arrays:
        network = copied(official.build(network), arrays).eval()
        images, labels, logits = (torch.from_numpy(arrays[name]) for name in ("images", "labels", "logits"))
    with torch.no_grad():
        difference = (network(images) - logits).abs().max().item()
    if not difference < LARGEST_DIFFERENCE:
        raise ValueError(f"The logits must differ by less than {LARGEST_DIFFERENCE}. Received: {difference}")
    network, images, labels = (each.to(device) for each in (network, images, labels))
    adversary = AutoAttack(network, norm, epsilon, seed, device=device)
    adversary.logger = clock = Clock()
    begin = time.perf_counter()
    adversary.run_standard_evaluation(images, labels, bs=batch_size)
    whole = time.perf_counter() - begin
    return {"rows": clock.rows, "whole": whole, "difference": difference, "torch": torch.__version__}


if __name__ == "__main__":
    measure.serve(attack)
