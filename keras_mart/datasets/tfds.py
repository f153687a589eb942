"""Datasets of tensorflow-datasets (TFDS), whose images are decoded when they are needed."""

import concurrent.futures
import functools
import io

import numpy as np

from keras_mart import checks
from keras_mart.datasets import encoded
from keras_mart.datasets.arrays import examples
from keras_mart.datasets.images import LazyImages


class TFDSDataset:
    """A TFDS dataset, which is downloaded and prepared if necessary.

    Args:
        name: as in `tfds.builder`.
        data_dir: where TFDS keeps its datasets.

    Raises:
        ValueError: no dataset has this name, or the dataset is not for image classification, or lacks a train or test
            split.
    """

    def __init__(self, name, data_dir):
        import tensorflow_datasets as tfds  # slow to import, and not needed by other sources

        try:
            self.builder = tfds.builder(name, data_dir=data_dir)
        except tfds.core.DatasetNotFoundError as error:
            near = checks.did_you_mean(name, tfds.list_builders(with_community_datasets=False))
            raise ValueError(f"`tfds:` must name a TensorFlow dataset. Received: {name!r}.{near}") from error
        self.info = self.builder.info
        if self.info.supervised_keys != ("image", "label"):
            keys = self.info.supervised_keys
            raise ValueError(
                f"A `tfds:` dataset must be for image classification. Received: {name!r} with supervised keys {keys}"
            )
        self.builder.download_and_prepare()
        test = next((split for split in ("test", "validation") if split in self.info.splits), None)
        if test is None or "train" not in self.info.splits:
            splits = sorted(self.info.splits)
            raise ValueError(f"A `tfds:` dataset must have train and test splits. Received: {name!r} with {splits}")
        self.splits = {"train": "train", "test": test}
        self.has_random_access = self.info.file_format == tfds.core.FileFormat.ARRAY_RECORD
        self.skip_decoding = {"image": tfds.decode.SkipDecoding()}

    def fingerprint(self):
        """Returns values that identify the data: name, version, file format, and the size of each split."""
        splits = [(name, self.info.splits[name].num_examples, self.info.splits[name].num_bytes) for name in self.splits]
        return self.info.full_name, self.has_random_access, splits

    def name(self, part, number):
        """Returns the name of an image for error messages."""
        return f"image {number}"

    def origin(self, part):
        """Returns where the images of a part come from, for error messages."""
        return f"tfds:{self.info.full_name}, split {self.splits[part]}"

    def read(self):
        """Returns ({"train": Examples, "test": Examples}, class names or `None`)."""
        names = getattr(self.info.features["label"], "names", None)
        return {part: self._read(part) for part in self.splits}, names and tuple(names)

    def _read(self, part):
        feature, origin = self.info.features["image"], self.origin(part)
        content, labels = self._contents(self.splits[part])

        def image(number):
            return encoded.decode_checked(feature.decode_example, content(number), f"image {number} of {origin}")

        def shape(number):
            return encoded.header_shape(io.BytesIO(content(number))) or image(number).shape

        if None in feature.shape:
            with concurrent.futures.ThreadPoolExecutor() as threads:
                shapes = list(threads.map(shape, range(len(labels))))
        else:
            shapes = np.broadcast_to(feature.shape, [len(labels), 3])
        name = functools.partial(self.name, part)
        return examples(LazyImages(image, shapes, name, origin, feature.np_dtype), labels, origin)

    def _contents(self, split):
        """Returns a function from an index to the encoded image, and all labels.

        If the file format has no random access, all encoded images are read into memory.
        """
        if self.has_random_access:
            source = self.builder.as_data_source(split, decoders=self.skip_decoding)
            return lambda number: source[number]["image"], np.array([each["label"] for each in source])
        pairs = self.builder.as_dataset(split=split, decoders=self.skip_decoding, as_supervised=True)
        pairs = list(pairs.as_numpy_iterator())
        return lambda number: pairs[number][0], np.array([label for _, label in pairs])
