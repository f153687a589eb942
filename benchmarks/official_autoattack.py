"""A child process: the official AutoAttack, as it is shipped, on the network that `evaluation.export` wrote.

It imports neither TensorFlow nor keras_mart, so any Python that has PyTorch runs it. The official code is not part of
this package: it is imported from a checkout of github.com/fra31/auto-attack.
"""

import re
import sys
import time

import numpy as np
import torch

from benchmarks import measure, official

# The most that two networks' logits may differ by.
LARGEST_DIFFERENCE = 1e-4


class Clock:
    """In the place of the official code's log: when each stage ended, and the share that it left standing."""

    def __init__(self):
        self.rows, self._before = [], None

    def log(self, text):
        now = time.perf_counter()
        if re.match("initial accuracy", text):
            self._before = now
        if ended := re.match(r"robust accuracy after (\S+): ([\d.]+)%", text):
            self.rows.append({"attack": ended[1].lower(), "seconds": now - self._before, "left": float(ended[2]) / 100})
            self._before = now
            measure.say({"rows": self.rows})  # for who does not wait for the last stage


def copied(network, arrays):
    """The network with the weights of `networks.in_pytorch`."""
    layers = [each for each in network.modules() if not list(each.children()) and each.state_dict()]
    for number, layer in enumerate(layers):
        for place, tensor in enumerate(layer.state_dict().values()):
            if (name := f"{number}_{place}") in arrays:  # PyTorch's count of batches is not
                array = torch.from_numpy(arrays[name])
                if array.shape != tensor.shape:
                    raise ValueError(f"{layer} must have weights of shape {tensor.shape}. Received: {array.shape}")
                tensor.copy_(array)
    return network


def attack(checkout, path, network, norm, epsilon, batch_size, seed):
    """A row for each stage, with the seconds that it took; the seconds of all; the largest difference of the logits."""
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
    measure.answer(attack)
