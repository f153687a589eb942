"""A cache for each network, for example of its traces; it is dropped when the network changes."""

import weakref

_CACHES: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def cache_of(network):
    """Returns the cache of a network, a dictionary; a new, empty one if its layers or variables have been replaced.

    It lives as long as the network. Changed attributes of layers, such as an activation, are not noticed, as in Keras's
    `predict`.

    Args:
        network: a Keras model.
    """
    parts = [*layers(network), *network.variables]
    seen, cache = _CACHES.get(network, ((), None))
    if (
        cache is None
        or len(seen) != len(parts)
        or any(ref() is not part for ref, part in zip(seen, parts, strict=True))
    ):
        cache = {}
        # Weak references: the id of a deleted variable may be used again, and a part may reference its network.
        _CACHES[network] = [weakref.ref(part) for part in parts], cache
    return cache


def layers(network):
    """Returns the layers of a model at any depth, also those in attributes."""
    return list(network._flatten_layers(include_self=False))  # private: `layers` omits layers inside other layers


def has_changed(network, key, settings):
    """Returns whether a network, or the settings under this key, have changed since the last call."""
    cache = cache_of(network)
    before, cache[key] = cache.get(key), settings
    return before is None or not all(_same(before[name], value) for name, value in settings.items())


def _same(one, other):
    """Returns whether two settings are the same: by value if `==` gives a bool, which it does not for arrays."""
    return one is other or (type(one) is type(other) and type(equal := one == other) is bool and equal)
