"""Base classes of methods whose loss has a weighted second term."""

from typing import Any

import keras

from keras_mart import checks
from keras_mart.attacks.base import Attack
from keras_mart.methods import model
from keras_mart.methods.hyperparameter import NOT_NEGATIVE, Hyperparameter


class WeightedModel(model.AdversarialModel):
    """Base class of methods with a second term of weight `beta`; `None` uses the method's `default_beta`."""

    default_beta: float | None = None

    beta = Hyperparameter(*NOT_NEGATIVE)

    def __init__(
        self, network: keras.Model, attack: Attack | None = None, *, beta: float | None = None, **kwargs: Any
    ) -> None:
        super().__init__(network, attack, **kwargs)
        self.beta = self.default_beta if beta is None else beta

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "beta": self.beta}


class PairingModel(WeightedModel):
    """Base class of methods that pair outputs, in the form of the MART paper ("mart") or their own ("original")."""

    # Chosen by this package: the papers' weights are for other datasets.
    default_beta = 0.5

    def __init__(
        self, network: keras.Model, attack: Attack | None = None, *, form: str = "mart", **kwargs: Any
    ) -> None:
        super().__init__(network, attack, **kwargs)
        checks.one_of(form, ("mart", "original"), "form")
        self.form = form

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "form": self.form}
