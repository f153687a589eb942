"""--mode=export: the best checkpoint's network as a SavedModel for TensorFlow Serving."""

from keras_mart.serving import export


def export_run(directory):
    """Writes the next version into the run directory's export/."""
    print(f"Exported the best checkpoint to {export(directory.load(directory.best), directory.export)}")
