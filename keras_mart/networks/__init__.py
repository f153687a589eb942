"""Adapters and loaders for networks from Keras and PyTorch."""

from keras_mart.networks.adapters import PREPROCESSING, adapted, logits_of, on_unit_images, resized, with_classes
from keras_mart.networks.applications import application, application_names
from keras_mart.networks.foreign import load_torch, save_torch

__all__ = [
    "PREPROCESSING",
    "adapted",
    "application",
    "application_names",
    "load_torch",
    "logits_of",
    "on_unit_images",
    "resized",
    "save_torch",
    "with_classes",
]
