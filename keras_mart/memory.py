"""What is kept of a network, such as its traces, until the network changes."""

import weakref

_CACHES = weakref.WeakKeyDictionary()


def cache_of(network):
    """Returns the dictionary of what is kept of a network: an empty one once its layers or variables are others.

    It lives as long as the network. Attributes of layers, such as an activation, are not looked at: a change of one
    is not noticed, as in Keras's `predict`.

    Args:
        network: a Keras model.
    """
    parts = [*layers(network), *network.variables]
    seen, kept = _CACHES.get(network, ((), None))
    if kept is None or len(seen) != len(parts) or any(ref() is not part for ref, part in zip(seen, parts, strict=True)):
        kept = {}
        # Weak references: the id of a variable that is gone may come again, and a part may hold its network.
        _CACHES[network] = [weakref.ref(part) for part in parts], kept
    return kept


def layers(network):
    """Returns the layers of a model at any depth, wherever they are kept."""
    return list(network._flatten_layers(include_self=False))  # private: `layers` leaves out those of other layers


def has_changed(network, key, settings):
    """Returns whether a network, or the settings kept by that key, are others than when this was asked last."""
    kept = cache_of(network)
    before, kept[key] = kept.get(key), settings
    return before is None or not all(_same(before[name], value) for name, value in settings.items())


def _same(one, other):
    """Whether two settings are one: by value where that is an answer, as that of arrays is not."""
    return one is other or (type(one) is type(other) and type(equal := one == other) is bool and equal)
