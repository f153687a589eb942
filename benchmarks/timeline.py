"""Profiles a function: the device's operations as recorded by TensorFlow's profiler.

The profiler writes an XSpace message (`*.xplane.pb`), which TensorFlow can read, so no other package is needed. A GPU's
operations are sequential; a CPU's are nested, so their durations are counted more than once.
"""

import collections
import itertools
import pathlib
import re
import tempfile

import tensorflow as tf

LONGEST = 10
PICOSECONDS = 1e-12
# XLA numbers its operations: loop_add_fusion.12, wrapped_convert_3.
NUMBER = re.compile(r"([._]\d+)+$")


def traced(function):
    """Runs a function and lists its longest operations.

    Returns:
        A dictionary: `device`, the name of the traced device; `seconds` from the start of the first operation to the
        end of the last; `idle`, the share of this time in which no operation ran; `operations`, their number;
        `longest`, a list of dictionaries with `name`, `count`, `seconds` and `share` of the sum of all durations.
    """
    with tempfile.TemporaryDirectory() as folder:
        tf.profiler.experimental.start(folder)
        try:
            function()
        finally:
            tf.profiler.experimental.stop()
        device, operations = device_operations(pathlib.Path(folder))
    begin, end = min(each[1] for each in operations), max(each[2] for each in operations)
    return {
        "device": device,
        "seconds": (end - begin) * PICOSECONDS,
        "idle": 1 - busy(operations) / (end - begin),
        "operations": len(operations),
        "longest": longest(operations),
    }


def device_operations(folder):
    """Returns the name of the traced device, and a list of (name, begin, end) in picoseconds."""
    from tensorflow.tsl.profiler.protobuf import xplane_pb2  # not part of TensorFlow's public interface

    planes = []
    for path in folder.rglob("*.xplane.pb"):
        planes += xplane_pb2.XSpace.FromString(path.read_bytes()).planes
    for plane in sorted(planes, key=lambda each: each.name):
        # A GPU's streams contain its operations; Python's threads on the host contain calls, which include waiting.
        streams = [line for line in plane.lines if line.name.startswith("Stream")]
        if plane.name.startswith("/device:GPU") and any(line.events for line in streams):
            return plane.name, [each for line in streams for each in events(plane, line)]
    host = next(plane for plane in planes if plane.name == "/host:CPU")
    threads = [line for line in host.lines if not line.name.startswith("python")]
    return host.name, [each for line in threads for each in events(host, line)]


def events(plane, line):
    """Yields (name, begin, end) of each event on a line, without XLA's numbers in the names."""
    for event in line.events:
        begin = 1000 * line.timestamp_ns + event.offset_ps
        name = NUMBER.sub("", plane.event_metadata[event.metadata_id].name)
        yield name, begin, begin + event.duration_ps


def busy(operations):
    """Returns the picoseconds in which at least one operation ran."""
    total, until = 0, 0
    for _, begin, end in sorted(operations, key=lambda each: each[1]):
        total += max(end - max(begin, until), 0)
        until = max(until, end)
    return total


def longest(operations):
    """Returns the kinds of operations with the longest total duration, and their shares of the sum of all durations."""
    durations, counts = collections.Counter(), collections.Counter()
    for name, begin, end in operations:
        durations[name] += end - begin
        counts[name] += 1
    whole = sum(durations.values())
    return [
        {"name": name, "count": counts[name], "seconds": picoseconds * PICOSECONDS, "share": picoseconds / whole}
        for name, picoseconds in itertools.islice(durations.most_common(), LONGEST)
    ]
