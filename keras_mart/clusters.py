"""The workers of a cluster, and which of them this process is, from TF_CONFIG or Slurm."""

import itertools
import json
import os
import re
from typing import NamedTuple


class Cluster(NamedTuple):
    """The workers of a cluster, and which of them this process is."""

    tasks: dict  # from job names to lists of addresses
    job: str
    task: int

    @property
    def addresses(self):
        """The addresses "host:port" of all workers, the chief first."""
        return [*self.tasks.get("chief", ()), *self.tasks.get("worker", ())]

    @property
    def index(self):
        return self.addresses.index(self.tasks[self.job][self.task])


def from_environment():
    """Returns the `Cluster` that TF_CONFIG or else the step of a Slurm job describes, or `None` if there is none.

    Raises:
        ValueError: TF_CONFIG or the variables of Slurm are invalid.
    """
    if os.environ.get("TF_CONFIG"):
        return _from_tf_config(os.environ["TF_CONFIG"])
    if "SLURM_STEP_NODELIST" in os.environ:
        return _from_slurm(os.environ)
    return None


def _from_tf_config(text):
    def error(rule, received=text):
        return ValueError(f"TF_CONFIG {rule}. Received: {received}")

    try:
        config = json.loads(text)
    except json.JSONDecodeError as cause:
        raise error(f"must be JSON ({cause})") from cause
    tasks = config.get("cluster", {}) if isinstance(config, dict) else None
    if not isinstance(tasks, dict) or not all(isinstance(each, list) for each in tasks.values()):
        raise error('must have "cluster", a dictionary from job names to lists of addresses')
    if not tasks:
        return None
    if not set(tasks) <= {"chief", "worker"} or not tasks.get("worker", tasks.get("chief")):
        raise error(
            'must have workers in its cluster, as jobs "worker" and optionally "chief", and no other job', list(tasks)
        )
    if len(tasks.get("chief", ())) > 1:
        raise error("must have at most one chief", tasks["chief"])
    addresses = [address for each in tasks.values() for address in each]
    invalid = [each for each in addresses if not re.fullmatch(r"(\[[^\]]+\]|[^:\s/]+):\d{1,5}", str(each))]
    if invalid or len(set(addresses)) < len(addresses):
        raise error('must give each worker a different address, "host:port"', invalid or addresses)
    task = config.get("task") or {}
    if not isinstance(task, dict) or task.get("type") not in tasks:
        raise error(f'must have "task" with "type", one of {", ".join(tasks)}, to say which worker this is', task)
    count = len(tasks[task["type"]])
    if not str(task.get("index", "")).isdigit() or int(task["index"]) >= count:
        raise error(f'must have "index" in "task", from 0 to {count - 1}, to say which {task["type"]} this is', task)
    return Cluster(tasks, task["type"], int(task["index"]))


def _from_slurm(environment):
    """Returns the `Cluster` of a Slurm step, with tasks numbered node by node (--distribution=block, the default)."""
    try:
        nodes = _expand_nodes(environment["SLURM_STEP_NODELIST"])
        counts = _expand_counts(environment["SLURM_STEP_TASKS_PER_NODE"])
        rank, job = int(environment["SLURM_PROCID"]), int(environment["SLURM_JOB_ID"])
    except (KeyError, ValueError) as error:
        raise ValueError(f"The variables of a Slurm step must be as srun sets them. Received: {error}") from error
    if len(nodes) != len(counts) or not rank < sum(counts):
        raise ValueError(
            "The variables of a Slurm step must be consistent. Received: "
            f"nodes {nodes}, tasks on them {counts}, SLURM_PROCID={rank}"
        )
    first = 12000 + job * 64 % 20000  # below the ephemeral ports; jobs with consecutive numbers get different ports
    return Cluster(
        {"worker": [f"{node}:{first + i}" for node, count in zip(nodes, counts, strict=True) for i in range(count)]},
        "worker",
        rank,
    )


def _expand_nodes(text):
    """Expands a list of nodes: n[8-10,12],m5 gives n8, n9, n10, n12, m5."""
    names = []
    for part in re.findall(r"(?:\[[^\]]*\]|[^,\[])+", text):
        pieces = re.findall(r"\[[^\]]*\]|[^\[]+", part)
        names += map("".join, itertools.product(*([*_numbers(p[1:-1])] if p[0] == "[" else [p] for p in pieces)))
    return names


def _numbers(text):
    for part in text.split(","):
        first, _, last = part.partition("-")
        yield from (str(number).zfill(len(first)) for number in range(int(first), int(last or first) + 1))


def _expand_counts(text):
    """Expands a list of counts: 2(x3),1 gives 2, 2, 2, 1."""
    matches = [re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part) for part in text.split(",")]
    if not all(matches):
        raise ValueError(f"SLURM_STEP_TASKS_PER_NODE={text}")
    return [int(each[1]) for each in matches for _ in range(int(each[2] or 1))]
