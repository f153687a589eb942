"""python -m experiments.train: the package's command line, extended by the experiments' methods and their flags."""

from experiments.methods import ALTERATIONS, OWN, TREATMENTS
from keras_mart.methods import METHODS

METHODS.update(OWN)  # before the flags read them

from absl import flags  # noqa: E402

from keras_mart import cli  # noqa: E402
from keras_mart.cli import parsers  # noqa: E402
from keras_mart.cli.flags import METHOD  # noqa: E402


def define():
    """Defines the flags of the experiments' methods."""
    flags.DEFINE_string("chosen", None, "Npz file with the chosen examples' indices (split).", module_name=METHOD)
    for name, choices in {"treatment": TREATMENTS, "alteration": ALTERATIONS}.items():
        parser = parsers.Choice(choices, name, optional=True)
        flags.DEFINE(parser, name, None, f"One of {', '.join(choices)}.", module_name=METHOD)
    flags.DEFINE(parsers.Number(optional=True), "share", None, "Share of the examples (partial).", module_name=METHOD)


if __name__ == "__main__":
    define()
    cli.run()
