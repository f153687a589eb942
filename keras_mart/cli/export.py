"""--mode=export: exports the network of the best checkpoint, or of --model, for TensorFlow Serving."""

from keras_mart.cli import build
from keras_mart.cli.flags import FLAGS
from keras_mart.serving import export


def export_run(directory):
    """Writes the next version to export/ in the run directory."""
    name = FLAGS.model or "the best checkpoint"
    print(f"Exported {name} to {export(build.loaded(directory, 'best'), directory.export)}")
