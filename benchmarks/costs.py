"""What `cost` counts, and whether it rose: equal from run to run, a build can be held to it."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from rich.table import Table

from benchmarks import graph_cost, instructions
from benchmarks.graph_cost import GraphCost
from benchmarks.instructions import Instructions
from benchmarks.printing import add, announce, table
from pipeline.errors import ConfigError

RISE = 0.001
"""Instructions that are more by this share have risen: machines may differ by less."""
FACTS = (
    "counted in the file, for one image: equal from run to run and on every machine",
    "activations: most memory at one time, in the order of the file, activation functions in place",
)


class Costs(BaseModel):
    """What `cost` found."""

    model_config = ConfigDict(frozen=True)

    costs: dict[str, GraphCost]
    instructions: dict[str, Instructions] = {}
    """Of the files that they were counted for."""
    provenance: dict[str, str] = {}


def count(files: Mapping[str, Path], *, retired: bool) -> Costs:
    """Count the .onnx files by title; with `retired` their instructions, which takes seconds.

    Raises what `graph_cost.cost` and `instructions.count` do.
    """
    costs = {title: graph_cost.cost(path) for title, path in files.items()}
    found: dict[str, Instructions] = {}
    for title, path in files.items() if retired else ():
        announce(f"instructions of {title}")
        found[title] = instructions.count(path)
    return Costs(costs=costs, instructions=found)


def facts(found: Costs) -> list[str]:
    """What has to be said beside the table."""
    ways = dict.fromkeys(each.how for each in found.instructions.values())
    return [
        *FACTS,
        *(
            f"instructions of an inference by {way}: ONNX Runtime's own, equal from run to run; "
            "a phone's kernels are others"
            for way in ways
        ),
    ]


def tables(found: Costs) -> list[Table]:
    """One line a file."""
    counted = bool(found.instructions)
    told = table(
        "Cost",
        *("file", "dense M MACs", "depthwise M MACs", "M parameters", "weights MB"),
        *("activations MB", "operators", *(["M instructions"] if counted else [])),
    )
    for title, cost in found.costs.items():
        cells = [f"{cost.dense_macs / 1e6:.3f}", f"{cost.depthwise_macs / 1e6:.3f}"]
        cells += [f"{cost.parameters / 1e6:.3f}", f"{cost.parameter_bytes / 1e6:.3f}"]
        cells += [f"{cost.peak_activation_bytes / 1e6:.3f}", str(cost.nodes)]
        if counted:
            cells.append(f"{found.instructions[title].per_inference / 1e6:.6f}")
        add(told, title, *cells)
    return [told]


def read(path: Path) -> Costs:
    """What an earlier `cost` wrote. Raises `ConfigError` for no such file."""
    try:
        return Costs.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--against {path}: no result of `cost`: {error}",
            "Name the .json file beside a page that `python -m benchmarks cost` wrote.",
        ) from error


def risen(found: Costs, before: Costs) -> list[str]:
    """What costs more than it did, in words; files by their titles.

    Raises `ConfigError` where a file of before is missing, or no file is in both, or instructions
    were counted otherwise.
    """
    if gone := [title for title in before.costs if title not in found.costs]:
        raise ConfigError(
            f"not counted now, as before: {', '.join(gone)}", "Name all the files of then."
        )
    both = [title for title in found.costs if title in before.costs]
    if not both:
        raise ConfigError(
            "no file has the title of one counted before: "
            f"{', '.join(found.costs)}; before: {', '.join(before.costs)}",
            "Count the same files, named in the same way.",
        )
    return [line for title in both for line in _risen(title, found, before)]


def _risen(title: str, found: Costs, before: Costs) -> Iterator[str]:
    now, then = found.costs[title], before.costs[title]
    names = ("dense_macs", "depthwise_macs", "parameters", "parameter_bytes")
    for name in (*names, "peak_activation_bytes", "nodes"):
        new, old = getattr(now, name), getattr(then, name)
        if new > old:
            yield f"{title}: {name.replace('_', ' ')} {old:,} -> {new:,}"
    if (title in found.instructions) != (title in before.instructions):
        when = "now" if title in found.instructions else "then"
        raise ConfigError(
            f"{title}: instructions were counted only {when}",
            "Count them both times (--instructions), or neither.",
        )
    if title in found.instructions:
        new, old = found.instructions[title], before.instructions[title]
        if new.how != old.how:
            raise ConfigError(
                f"{title}: instructions were counted by {old.how}, now by {new.how}",
                "Count the earlier file again here.",
            )
        if new.per_inference > old.per_inference * (1 + RISE):
            yield f"{title}: instructions {old.per_inference:,} -> {new.per_inference:,}"
