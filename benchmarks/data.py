"""Measures reading data larger than memory: images/s and peak resident memory, each way in its own process.

    python -m benchmarks.data                                    # some minutes on 2 cores, 12 GB of disk
    python -m benchmarks.data --images=300 --extra_images=20000  # a quick trial
    python -m benchmarks.data --augment=none,crop_flip,idbh      # only augmentations of random 32x32 images, batch 128

A folder of JPEG files of 256x256 pixels is read in training order: decoded on demand, decoded into a new cache, and
from that cache; each at the original size and resized to 224 at random (augment="crop_flip"). The images are random but
smooth (enlarged coarse noise plus a little fine noise), so that a file is about as large as a photograph of that size;
1,000 distinct images are written several times each. Then extra images of 32x32 pixels are mixed with black labelled
ones, half of each batch: from a memory-mapped npz file, and from a compressed one, which is read into memory. They
repeat 8 images, which compress quickly.

"open s" is the time until the first batch can be requested; images/s is measured over the following pass, with nothing
else running. Data whose decoded images take less than 1 GiB are decoded when opened, so their passes show little. Peak
memory includes mapped pages of files, which the system can reclaim: "mapped" is their size at the end (including
libraries), "before" the memory of the process before it opened the data. "CPU us" are the microseconds of one core for
each image of the pass.
"""

import argparse
import pathlib
import sys
import tempfile
import time

from benchmarks import measure

SIDE, RESIZED, DISTINCT, COARSE = 256, 224, 1000, 16
EXTRA_SIDE, EXTRA_DISTINCT, LABELLED, AUGMENTED = 32, 8, 50000, 20000
COLUMNS = (
    ("data", "data", ""), ("read", "read", ""), ("size", "image_size", "d"), ("images", "images", "d"),
    ("open s", "opening", ".1f"), ("images/s", "rate", ".0f"), ("CPU us", "cpu", ".0f"),
    ("peak GB", "peak", ".2f"), ("mapped", "mapped", ".2f"),
    ("before", "before", ".2f"),
)  # fmt: skip


def pictures(folder, images):
    """Writes the folder of JPEG files in two classes, and returns the average bytes of a file."""
    import numpy as np
    import tensorflow as tf

    random, sizes = np.random.default_rng(0), []
    for number in range(min(DISTINCT, images)):
        picture = tf.image.resize(random.uniform(0, 255, [COARSE, COARSE, 3]), [SIDE, SIDE], "bicubic")
        picture += random.normal(0, 6, [SIDE, SIDE, 1])
        content = tf.io.encode_jpeg(tf.saturate_cast(picture, tf.uint8), quality=90).numpy()
        for copy in range(number, images, DISTINCT):
            path = pathlib.Path(folder, "ab"[copy % 2], f"{copy:06}.jpg")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        sizes.append(len(content))
    return sum(sizes) / len(sizes)


def extra(path, images, compressed):
    """Writes the npz file of extra images."""
    import numpy as np

    distinct = np.random.default_rng(0).integers(0, 256, [EXTRA_DISTINCT, EXTRA_SIDE, EXTRA_SIDE, 3], dtype=np.uint8)
    write = np.savez_compressed if compressed else np.savez
    write(path, image=np.resize(distinct, [images, *distinct.shape[1:]]), label=np.arange(images) % 10)


def folder_pass(folder, **options):
    """Measures a pass over the folder's training images."""
    import keras_mart as km

    augment = {"augment": "crop_flip"} if options.get("image_size") else {}
    return passed(lambda: km.datasets.load(f"folder:{folder}", remainder="keep", **augment, **options))


def extra_pass(path, batches):
    """Measures a pass over batches of labelled and extra images."""
    import tensorflow as tf

    import keras_mart as km

    black = tf.zeros([64, EXTRA_SIDE, EXTRA_SIDE, 3]), tf.zeros([64], tf.int32)
    labelled = tf.data.Dataset.from_tensors(black).repeat(batches)
    return passed(lambda: km.datasets.mix(labelled, km.datasets.load_extra(f"npz:{path}"), augment="crop_flip"))


def augment_pass(path, augment):
    """Measures a pass over random images of 32x32 pixels; the first call also writes their npz file."""
    import numpy as np

    import keras_mart as km

    if not pathlib.Path(path).exists():
        images = np.random.default_rng(0).integers(0, 256, [AUGMENTED, EXTRA_SIDE, EXTRA_SIDE, 3], dtype=np.uint8)
        labels = np.arange(AUGMENTED) % 10
        np.savez(path, x_train=images, y_train=labels, x_test=images[:10], y_test=labels[:10])
    names = [] if augment == "none" else augment.split("+")
    return passed(lambda: km.datasets.load(f"npz:{path}", augment=names))


def passed(load):
    """Opens data, reads them once, and returns the measurements."""
    before, begin = measure.resident(), time.perf_counter()
    data = load()
    opened, used, images = time.perf_counter(), time.process_time(), 0
    for _, labels, *_ in data:
        images += len(labels)
    seconds, used = time.perf_counter() - opened, time.process_time() - used
    status = pathlib.Path("/proc/self/status").read_text().split()
    return {
        "images": images, "opening": opened - begin, "rate": images / seconds, "cpu": 1e6 * used / images,
        "peak": measure.resident() / 1e9,
        "mapped": int(status[status.index("RssFile:") + 1]) * 1024 / 1e9, "before": before / 1e9,
    }  # fmt: skip


TASKS = {each.__name__: each for each in (pictures, extra, folder_pass, extra_pass, augment_pass)}


def run(task, **job):
    """Runs a task in its own process and returns its answer."""
    return measure.run("data", {"task": task, **job})


def rows(given, root):
    """Writes the data and reads them; yields the rows of the table."""
    if given.augment:
        for augment in given.augment.split(","):
            answer = run("augment_pass", path=str(root / "images.npz"), augment=augment)
            yield {"data": f"npz of {AUGMENTED}", "read": augment, **answer}
        return
    size = run("pictures", folder=str(root / "images"), images=given.images)
    print(f"{given.images} JPEG files of {SIDE}x{SIDE} pixels, {size / 1000:.0f} kB on average", file=sys.stderr)
    for image_size in (None, RESIZED):
        cache = str(root / f"cache-{image_size}")
        for read, folder in (("decoded", None), ("into the cache", cache), ("from the cache", cache)):
            answer = run("folder_pass", folder=str(root / "images"), image_size=image_size, cache=folder)
            yield {"data": "folder", "read": read, "image_size": image_size, **answer}
    for compressed in (False, True):
        path = str(root / "extra.npz")
        run("extra", path=path, images=given.extra_images, compressed=compressed)
        answer = run("extra_pass", path=path, batches=min(LABELLED, given.extra_images) // 64)
        yield {"data": f"npz of {given.extra_images}", "read": "read" if compressed else "mapped", **answer}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=measure.positive, default=20000, help="JPEG files")
    parser.add_argument("--extra_images", type=measure.positive, default=1000000, help="images in the npz files")
    parser.add_argument("--augment", help="augmentations to measure instead, separated by commas; + combines them")
    parser.add_argument("--folder", help="parent of the temporary folder, by default Python's")
    parser.add_argument("--json", help="file for the figures")
    given = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory(dir=given.folder) as root:
        for row in rows(given, pathlib.Path(root)):
            found.append(row)
            print(f"{row['data']}, {row['read']}: {row['rate']:.0f} images/s", file=sys.stderr)
    print(measure.line(measure.machine()))
    measure.print_table(found, COLUMNS)
    measure.write(given.json, machine=measure.machine(), rows=found)


def child(task, **job):
    return TASKS[task](**job)


if __name__ == "__main__":
    measure.serve(child) if sys.argv[1:] and sys.argv[1].startswith("{") else main()
