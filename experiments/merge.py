"""Merges the results of runs on other machines into the repository's.

    python -m experiments.merge <folder> [--results=experiments/results]

Reads the studies' files in the folder, such as cifar.json. A run that is in both places must be the same training; each
record is completed from the other. If runs contradict each other, they are listed and nothing is written.
"""

import argparse
import json
import pathlib
import sys

from experiments.report import ROOT
from keras_mart import files

# May differ between two records of one run; the repository's values take precedence.
CIRCUMSTANCES = ("seconds", "machine", "jobs")


def merged(ours, theirs):
    """Returns the union of two records of one run.

    Raises:
        ValueError: if the records contradict each other; the message is the key.
    """
    found = {**theirs, **ours, "seconds": {**theirs["seconds"], **ours["seconds"]}}
    for name in ours.keys() & theirs.keys() - set(CIRCUMSTANCES):
        one, other = ours[name], theirs[name]
        if name == "evaluations" and all(one[each] == other[each] for each in one.keys() & other.keys()):
            found[name] = {**other, **one}
        elif one and other and one != other:
            raise ValueError(name)
        else:
            found[name] = one or other
    return found


def merge(folder, results):
    """Merges the studies' files of a folder into those of `results`.

    Raises:
        SystemExit: if runs contradict each other; nothing is written then.
    """
    studies, contradictions = {}, []
    for path in sorted(folder.glob("*.json")):
        theirs, target = json.loads(path.read_text()), results / path.name
        if not all(isinstance(each, dict) and {"flags", "seconds"} <= each.keys() for each in theirs.values()):
            print(f"{path}: skipped, it contains no runs of a study")
            continue
        ours = json.loads(target.read_text()) if target.exists() else {}
        studies[target] = dict(ours)
        for name, record in theirs.items():
            try:
                studies[target][name] = merged(ours[name], record) if name in ours else record
            except ValueError as error:
                contradictions.append(f"{path}: {name} ({error})")
        changed = [name for name, record in studies[target].items() if record != ours.get(name)]
        print(f"{path}: {', '.join(changed) or 'nothing new'}")
    if contradictions:
        sys.exit(f"Runs with the same name must be the same training. Received: {'; '.join(contradictions)}")
    results.mkdir(parents=True, exist_ok=True)
    for path, study in studies.items():
        with files.atomic_file(path) as unfinished:
            unfinished.write_text(json.dumps(study, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser("python -m experiments.merge", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path, help="folder of the other results")
    parser.add_argument("--results", type=pathlib.Path, default=ROOT / "experiments" / "results")
    options = parser.parse_args()
    merge(options.folder, options.results)
