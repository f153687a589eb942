"""Compares the evaluations of several classifiers, as a table and in sentences."""

from keras_mart.evaluation.table import CUMULATIVE, WORST_CASE


def side_by_side(tables):
    """Returns the accuracies of several tables as text, one row per table, without stages of compound attacks.

    Args:
        tables: row name to `Table`; all must have the same attacks.
    """
    attacks = [name for name in next(iter(tables.values())).accuracy if "/" not in name]
    first = max(map(len, ["method", *tables]))
    widths = [max(len(attack), len("100.00%")) for attack in attacks]
    lines = ["  ".join([f"{'method':<{first}}", *map("{:>{}}".format, attacks, widths)])]
    for name, table in tables.items():
        cells = [f"{table[attack]:>{width}.2%}" for attack, width in zip(attacks, widths, strict=True)]
        lines.append("  ".join([f"{name:<{first}}", *cells]))
    if any(table.stop_early for table in tables.values()):
        lines.append(CUMULATIVE)
    return "\n".join(lines)


def conclusion(tables):
    """Returns two sentences on the worst case: which classifier is the most robust, and how certain that is.

    Args:
        tables: name to `Table`; all must have the same attacks.
    """
    best = max(tables, key=lambda name: tables[name][WORST_CASE])
    table, others = tables[best], [name for name in tables if name != best]
    low, high = table.intervals[WORST_CASE]
    result = (
        f"{best} classifies {table[WORST_CASE]:.2%} of {table.examples:,} test images correctly under every attack "
        f"(95% interval {low:.2%} to {high:.2%})"
    )
    if others:
        result += ", " + ", ".join(f"{name} {tables[name][WORST_CASE]:.2%}" for name in others)
    close = [name for name in others if tables[name].intervals[WORST_CASE][1] >= low]
    bound = "stronger attacks can only lower these figures."
    if not close:
        return f"{result}.\n{bound.capitalize()}"
    return f"{result}.\nThe intervals of {' and '.join([best, *close])} overlap, so their order may be chance; {bound}"
