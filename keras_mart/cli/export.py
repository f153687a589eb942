"""--mode=export: the best checkpoint's network, or that of --model, as a SavedModel for TensorFlow Serving."""

from keras_mart.cli import build
from keras_mart.cli.flags import FLAGS
from keras_mart.serving import export


def export_run(directory):
    """Writes the next version into the run directory's export/."""
    what = FLAGS.model or "the best checkpoint"
    print(f"Exported {what} to {export(build.loaded(directory, 'best'), directory.export)}")
