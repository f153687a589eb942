"""The result of an evaluation, to print and to keep."""

import dataclasses
import json


@dataclasses.dataclass(frozen=True)
class Table:
    """Accuracies of one classifier on the same examples: natural, then under each attack.

    Attributes:
        examples: number of examples.
        accuracy: name to share of examples classified correctly, in [0, 1]; "natural" comes first.
        seconds: name to the time it took.
    """

    examples: int
    accuracy: dict
    seconds: dict

    def __getitem__(self, name):
        """The accuracy under the attack of that name, or "natural"."""
        return self.accuracy[name]

    def __str__(self):
        width = max(map(len, self.accuracy))
        lines = [f"{'attack':<{width}}  accuracy  seconds"]
        for name, accuracy in self.accuracy.items():
            lines.append(f"{name:<{width}}  {accuracy:>7.2%}   {self.seconds[name]:>7.1f}")
        return "\n".join([*lines, f"({self.examples:,} examples)"])

    def to_json(self):
        """The table as a JSON object, indented."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    @classmethod
    def from_json(cls, text):
        """The table that `to_json` wrote."""
        return cls(**json.loads(text))


def side_by_side(tables):
    """Text of several tables' accuracies, one row each.

    Args:
        tables: row name to `Table`; all with the same attacks.
    """
    attacks = list(next(iter(tables.values())).accuracy)
    first = max(map(len, ["method", *tables]))
    widths = [max(len(attack), len("100.00%")) for attack in attacks]
    lines = ["  ".join([f"{'method':<{first}}", *map("{:>{}}".format, attacks, widths)])]
    for name, table in tables.items():
        cells = [f"{table[attack]:>{width}.2%}" for attack, width in zip(attacks, widths, strict=True)]
        lines.append("  ".join([f"{name:<{first}}", *cells]))
    return "\n".join(lines)
