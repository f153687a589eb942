"""Networks that come from elsewhere: what stands between them and this package, bridged."""

from keras_mart.networks.applications import application, application_names
from keras_mart.networks.bridges import PREPROCESSING, adapted, logits_of, on_unit_images, resized, with_classes

__all__ = [
    "PREPROCESSING",
    "adapted",
    "application",
    "application_names",
    "logits_of",
    "on_unit_images",
    "resized",
    "with_classes",
]
