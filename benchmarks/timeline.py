"""Where the time of a function goes: the operations of the device as TensorFlow's profiler records them.

The profiler leaves an XSpace message (`*.xplane.pb`), which TensorFlow itself can read, so no other package is needed.
A GPU's operations come one after the other; those of a CPU contain one another, so that their shares count twice.
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
    """What the longest operations were while the function ran.

    Returns:
        A dictionary: `device`, the name of what was traced; `seconds` between the first operation's beginning and the
        last one's end; `idle`, the share of them in which no operation ran; `operations`, the number of all; `longest`,
        a list of dictionaries with `name`, `count`, `seconds` and `share` of the sum of all operations' durations.
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
    """The name of the device that was traced, and a list of (name, begin, end) in picoseconds."""
    from tensorflow.tsl.profiler.protobuf import xplane_pb2  # not part of TensorFlow's public interface

    planes = []
    for path in folder.rglob("*.xplane.pb"):
        planes += xplane_pb2.XSpace.FromString(path.read_bytes()).planes
    for plane in sorted(planes, key=lambda each: each.name):
        # A GPU's streams hold what ran on it; of the host's threads, Python's hold calls, in which it waits as well.
        streams = [line for line in plane.lines if line.name.startswith("Stream")]
        if plane.name.startswith("/device:GPU") and any(line.events for line in streams):
            return plane.name, [each for line in streams for each in events(plane, line)]
    host = next(plane for plane in planes if plane.name == "/host:CPU")
    threads = [line for line in host.lines if not line.name.startswith("python")]
    return host.name, [each for line in threads for each in events(host, line)]


def events(plane, line):
    """(name, begin, end) of each event on a line, without numbers of XLA's in the names."""
    for event in line.events:
        begin = 1000 * line.timestamp_ns + event.offset_ps
        name = NUMBER.sub("", plane.event_metadata[event.metadata_id].name)
        yield name, begin, begin + event.duration_ps


def busy(operations):
    """Picoseconds in which at least one operation ran."""
    total, until = 0, 0
    for _, begin, end in sorted(operations, key=lambda each: each[1]):
        total += max(end - max(begin, until), 0)
        until = max(until, end)
    return total


def longest(operations):
    """The kinds of operation that took longest, each with its share of the sum of all durations."""
    durations, counts = collections.Counter(), collections.Counter()
    for name, begin, end in operations:
        durations[name] += end - begin
        counts[name] += 1
    whole = sum(durations.values())
    return [
        {"name": name, "count": counts[name], "seconds": picoseconds * PICOSECONDS, "share": picoseconds / whole}
        for name, picoseconds in itertools.islice(durations.most_common(), LONGEST)
    ]
