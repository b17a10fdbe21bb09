"""Read dvc.yaml as a graph of stages."""

from collections.abc import Iterable
from graphlib import TopologicalSorter
from pathlib import Path


def pipeline(root: Path) -> dict[str, dict]:
    """Return the stages of dvc.yaml as they are written: name -> entry."""
    from ruamel.yaml import YAML

    text = (root / "dvc.yaml").read_text(encoding="utf-8")
    return YAML(typ="safe").load(text)["stages"]


def listed(entries: list | None) -> list[str]:
    """Return the paths of a deps or outs list, whose entries are paths or {path: options}."""
    return [
        entry if isinstance(entry, str) else next(iter(entry))
        for entry in entries or []
    ]


def is_within(path: str, folder: str) -> bool:
    """Tell whether a relative path is a folder, or in it."""
    return path == folder or path.startswith(f"{folder}/")


def graph(stages: dict[str, dict]) -> dict[str, list[str]]:
    """Return which stages each stage waits for, in an order that respects them.

    Args:
        stages: From `pipeline`.

    Returns:
        Stage -> the stages just before it.
    """
    outs = {
        name: listed(stage.get("outs")) + listed(stage.get("metrics"))
        for name, stage in stages.items()
    }

    def feeds(earlier: str, dep: str) -> bool:
        return any(is_within(dep, out) or is_within(out, dep) for out in outs[earlier])

    before = {
        name: [
            other
            for other in stages
            if other != name
            and any(feeds(other, dep) for dep in listed(stage.get("deps")))
        ]
        for name, stage in stages.items()
    }
    return {name: before[name] for name in TopologicalSorter(before).static_order()}


def subgraph(
    graph: dict[str, list[str]], wanted: Iterable[str]
) -> dict[str, list[str]]:
    """Return the part of a graph that holds the wanted stages, in the order of the whole.

    What comes before a stage through one that is left out still comes before it.
    """
    wanted = set(wanted)

    def before(stage: str) -> list[str]:
        found = []
        for other in graph[stage]:
            found += [other] if other in wanted else before(other)
        return found

    return {
        stage: list(dict.fromkeys(before(stage))) for stage in graph if stage in wanted
    }


def ancestors(graph: dict[str, list[str]], stage: str) -> list[str]:
    """Return all stages before a stage, in order."""
    needed = {stage}
    for name in reversed(graph):
        if name in needed:
            needed |= set(graph[name])
    return [name for name in graph if name in needed - {stage}]


def loops(stages: dict[str, dict]) -> dict[str, dict[str, list[str]]]:
    """Return the graphs that have a DAG: watch a month, learn anew, and all.

    Args:
        stages: From `pipeline`.
    """
    whole = graph(stages)
    learn = [
        name
        for name in whole
        if (stages[name].get("meta") or {}).get("loop") == "learn"
    ]
    needed = set(learn)
    for name in learn:
        needed |= set(ancestors(whole, name))
    return {
        "watch": subgraph(whole, [name for name in whole if name not in learn]),
        "learn": subgraph(whole, needed),
        "all": whole,
    }
