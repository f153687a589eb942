"""A child process that measures training steps of MART in PyTorch, our reimplementation of the official code's.

It imports neither TensorFlow nor keras_mart, so it runs in any Python with PyTorch.

    shipped    float32 (TF32 convolutions if the GPU supports them), channels first
    tuned      channels last and bfloat16 autocast
    compiled   as tuned, with `torch.compile`

Reference: Wang et al., ICLR 2020, train_resnet.py; Zagoruyko and Komodakis (1605.07146).
"""

import re
import time

import torch
from torch import nn
from torch.nn import functional

from benchmarks import measure

CLASSES, SIZE, CHANNELS = 10, 32, 3
EPSILON, STEP_SIZE, START, BETA = 8 / 255, 2 / 255, 0.001, 5.0
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 0.01, 0.9, 3.5e-3
RESNET18_FILTERS, WIDE_RESNET_FILTERS = (64, 128, 256, 512), (16, 32, 64)


def convolution(inputs, filters, size=3, stride=1):
    return nn.Conv2d(inputs, filters, size, stride, padding=size // 2, bias=False)


class Basic(nn.Module):
    """relu(shortcut(x) + bn(conv(relu(bn(conv(x))))))."""

    def __init__(self, inputs, filters, stride):
        super().__init__()
        self.conv1, self.bn1 = convolution(inputs, filters, 3, stride), nn.BatchNorm2d(filters)
        self.conv2, self.bn2 = convolution(filters, filters), nn.BatchNorm2d(filters)
        self.shortcut = nn.Identity()
        if stride != 1 or inputs != filters:
            self.shortcut = nn.Sequential(convolution(inputs, filters, 1, stride), nn.BatchNorm2d(filters))

    def forward(self, x):
        inner = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(inner)) + self.shortcut(x))


class Wide(nn.Module):
    """x + conv(relu(bn(conv(relu(bn(x)))))); if the shape changes, a 1x1 convolution of relu(bn(x)) replaces x."""

    def __init__(self, inputs, filters, stride):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), convolution(inputs, filters, 3, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(filters), convolution(filters, filters)
        self.shortcut = None if inputs == filters else convolution(inputs, filters, 1, stride)

    def forward(self, x):
        active = functional.relu(self.bn1(x))
        inner = functional.relu(self.bn2(self.conv1(active)))
        return self.conv2(inner) + (x if self.shortcut is None else self.shortcut(active))


def stages(block, inputs, filters, blocks):
    """Yields the blocks of all stages; each stage except the first halves the image."""
    for stage, outputs in enumerate(filters):
        for number in range(blocks):
            yield block(inputs, outputs, 2 if stage and not number else 1)
            inputs = outputs


def strided_cnn():
    """Builds the network of `networks.strided_cnn`."""
    convolutions = [nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU()]
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(32 * 7 * 7, 100), nn.ReLU(), nn.Linear(100, CLASSES))


def build(name):
    """Builds `resnet18` or `wide_resnet_<depth>_<width>` for 32x32 images, or `strided_cnn` for MNIST."""
    if name == "strided_cnn":
        return strided_cnn()
    if name == "resnet18":
        stem, last = [convolution(CHANNELS, 64), nn.BatchNorm2d(64), nn.ReLU()], RESNET18_FILTERS[-1]
        body, end = stages(Basic, 64, RESNET18_FILTERS, 2), []
    else:
        depth, width = map(int, re.fullmatch(r"wide_resnet_(\d+)_(\d+)", name).groups())
        filters = [width * each for each in WIDE_RESNET_FILTERS]
        stem, last = [convolution(CHANNELS, 16)], filters[-1]
        body, end = stages(Wide, 16, filters, (depth - 4) // 6), [nn.BatchNorm2d(last), nn.ReLU()]
    return nn.Sequential(*stem, *body, *end, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(last, CLASSES))


def perturb(logits, images, labels, steps):
    """Runs PGD on the cross-entropy in the Linf ball, from a Gaussian start."""
    candidates = images + START * torch.randn_like(images)
    for _ in range(steps):
        candidates.requires_grad_()
        (gradient,) = torch.autograd.grad(functional.cross_entropy(logits(candidates), labels), candidates)
        candidates = candidates.detach() + STEP_SIZE * gradient.sign()
        candidates = torch.min(torch.max(candidates, images - EPSILON), images + EPSILON).clamp(0.0, 1.0)
    return candidates


def mart_loss(natural, adversarial, labels):
    """Returns the mean of the boosted cross-entropy plus beta times the divergence, weighted by 1 - p_y."""
    labels = labels[:, None]
    p, q = natural.softmax(1), adversarial.softmax(1)
    others = q.scatter(1, labels, 0.0).amax(1)
    boosted = functional.cross_entropy(adversarial, labels[:, 0]) - torch.log(1.0001 - others + 1e-12).mean()
    divergence = (p * (natural.log_softmax(1) - adversarial.log_softmax(1))).sum(1)
    return boosted + BETA * (divergence * (1.0000001 - p.gather(1, labels)[:, 0])).mean()


def training_step(variant, network, logits, optimizer, images, labels, attack_steps):
    autocast = torch.autocast(images.device.type, torch.bfloat16, enabled=variant != "shipped")
    with autocast:  # one context for all forwards, so that weights are cast once per step
        network.eval()
        adversarial = perturb(logits, images, labels, attack_steps)
        network.train()
        loss = mart_loss(logits(images), logits(adversarial), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss


def training(variant, network, batch_size, attack_steps, steps):
    """Returns the seconds of the first step and of each later one, their losses, and the peak memory in bytes."""
    imported, device = measure.resident(), "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    layout = torch.contiguous_format if variant == "shipped" else torch.channels_last
    network = build(network).to(device, memory_format=layout)
    called = torch.compile(network) if variant == "compiled" else network
    images = torch.rand(batch_size, CHANNELS, SIZE, SIZE, device=device).to(memory_format=layout)
    labels = torch.randint(CLASSES, (batch_size,), device=device)
    optimizer = torch.optim.SGD(network.parameters(), LEARNING_RATE, MOMENTUM, weight_decay=WEIGHT_DECAY)
    seconds, losses = [], []
    for _ in range(1 + steps):
        begin = time.perf_counter()
        loss = training_step(variant, network, lambda x: called(x).float(), optimizer, images, labels, attack_steps)
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
        losses.append(loss.item())
    memory = torch.cuda.max_memory_allocated() if device == "cuda" else measure.resident() - imported
    return {"first": seconds[0], "steps": seconds[1:], "losses": losses, "memory": memory, "torch": torch.__version__}


if __name__ == "__main__":
    measure.serve(training)
