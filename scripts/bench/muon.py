"""Measures the two forms of Muon's iterations on a CPU, with the weights of an iResNet.

    python -m scripts.bench.muon --depth 18 --width 32 --embedding 256

Both make the same steps. Rounds alternate, and figures are medians.
"""

import statistics
from collections.abc import Iterator
from typing import Any, Literal

import torch

from data.options import Count
from recognition.backbones import iresnet
from recognition.muon import iterated, iterated_by_squares, muon_weights
from scripts._tables import show_table
from scripts.bench._measure import in_turn, median_ratio, seconds
from tools._cli import command


def weights_by_shape(backbone: torch.nn.Module) -> dict[tuple[int, int], torch.Tensor]:
    """The weights that Muon steps as wide matrices (K,m,n) of norm 1, by (m, n)."""
    found: dict[tuple[int, int], list[torch.Tensor]] = {}
    for name in sorted(muon_weights(backbone)):
        matrix = backbone.get_parameter(name).detach().flatten(1)
        wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT
        found.setdefault((wide.shape[0], wide.shape[1]), []).append(wide / wide.norm())
    return {shape: torch.stack(matrices) for shape, matrices in found.items()}


def compare(groups: dict[str, list[torch.Tensor]], rounds: int) -> Iterator[dict[str, Any]]:
    """One row per group of stacked matrices."""
    forms = {"written": iterated, "by squares": iterated_by_squares}
    for name, stacks in groups.items():

        def work(form: str, stacks: list[torch.Tensor] = stacks) -> float:
            return seconds(lambda: [forms[form](stack) for stack in stacks])

        in_turn(forms, 1, work)  # the first products make threads and plans
        times = in_turn(forms, rounds, work)
        yield {
            "weights": name,
            "as written, ms": 1e3 * statistics.median(times["written"]),
            "by squares, ms": 1e3 * statistics.median(times["by squares"]),
            "ratio": median_ratio(times["by squares"], times["written"]),
        }


def run(
    *,
    depth: Literal[18, 34, 50, 100, 200] = 18,
    width: Count = 32,
    embedding: Count = 256,
    rounds: Count = 7,
) -> dict[str, Any]:
    """Compare the forms.

    depth: layers of the network.
    width: channels of its first stage.
    embedding: numbers per embedding.
    rounds: how often each form is timed.
    """
    network = iresnet.build(112, depth=depth, width=width, embedding=embedding)
    by_shape = weights_by_shape(network)
    groups = {f"{len(x)} of {m} × {n}": [x] for (m, n), x in by_shape.items()}
    return {"rows": show_table(compare({**groups, "all": list(by_shape.values())}, rounds))}


main = command(run)
