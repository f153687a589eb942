"""Adds the results of runs that were made elsewhere to those of the repository.

    python -m experiments.merge <folder> [--results=experiments/results]

Takes the studies' files of the folder, such as cifar.json. A run that both have must be the same training: what one of
them lacks is taken from the other. Where a run contradicts the one that is there, it is named and nothing is written.
"""

import argparse
import json
import pathlib
import sys

from experiments.report import ROOT
from keras_mart import files

# How a run was done; the runs that are there already say so first.
HOW = ("seconds", "machine", "jobs")


def merged(ours, theirs):
    """What two records of one run hold together.

    Raises:
        ValueError: they have something in common that differs.
    """
    found = {**theirs, **ours, "seconds": {**theirs["seconds"], **ours["seconds"]}}
    for name in ours.keys() & theirs.keys() - set(HOW):
        one, other = ours[name], theirs[name]
        if name == "evaluations" and all(one[each] == other[each] for each in one.keys() & other.keys()):
            found[name] = {**other, **one}
        elif one and other and one != other:
            raise ValueError(name)
        else:
            found[name] = one or other
    return found


def merge(folder, results):
    """Writes what the studies' files of a folder add to those of `results`.

    Raises:
        SystemExit: runs that contradict each other; nothing was written.
    """
    studies, contradictions = {}, []
    for path in sorted(folder.glob("*.json")):
        theirs, kept = json.loads(path.read_text()), results / path.name
        if not all(isinstance(each, dict) and {"flags", "seconds"} <= each.keys() for each in theirs.values()):
            print(f"{path}: left out, it holds no runs of a study")
            continue
        ours = json.loads(kept.read_text()) if kept.exists() else {}
        studies[kept] = dict(ours)
        for name, record in theirs.items():
            try:
                studies[kept][name] = merged(ours[name], record) if name in ours else record
            except ValueError as error:
                contradictions.append(f"{path}: {name} ({error})")
        changed = [name for name, record in studies[kept].items() if record != ours.get(name)]
        print(f"{path}: {', '.join(changed) or 'nothing new'}")
    if contradictions:
        sys.exit(f"Runs of one name must be the same training. Received: {'; '.join(contradictions)}")
    results.mkdir(parents=True, exist_ok=True)
    for path, study in studies.items():
        with files.atomic_file(path) as unfinished:
            unfinished.write_text(json.dumps(study, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser("python -m experiments.merge", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path, help="where the other results are")
    parser.add_argument("--results", type=pathlib.Path, default=ROOT / "experiments" / "results")
    options = parser.parse_args()
    merge(options.folder, options.results)
