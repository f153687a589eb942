"""Methods whose loss has a second term of some weight."""

from keras_mart import checks
from keras_mart.methods import model
from keras_mart.methods.hyperparameter import NOT_NEGATIVE, Hyperparameter


class WeightedModel(model.AdversarialModel):
    """A method with a second term of weight `beta`; `None` takes the method's own `default_beta`."""

    default_beta = None

    beta = Hyperparameter(*NOT_NEGATIVE)

    def __init__(self, network, attack=None, *, beta=None, **kwargs):
        super().__init__(network, attack, **kwargs)
        self.beta = self.default_beta if beta is None else beta

    def get_config(self):
        return {**super().get_config(), "beta": self.beta}


class PairingModel(WeightedModel):
    """A method that pairs outputs, in the MART paper's form ("mart") or in its own paper's ("original")."""

    # This package's choice: the papers' weights belong to other data sets.
    default_beta = 0.5

    def __init__(self, network, attack=None, *, form="mart", **kwargs):
        super().__init__(network, attack, **kwargs)
        checks.one_of(form, ("mart", "original"), "form")
        self.form = form

    def get_config(self):
        return {**super().get_config(), "form": self.form}
