"""What the benchmarks share: fresh processes, alternating rounds, clocks and ratios.

The speed of a shared machine changes within seconds. Therefore variants are measured in turn, round
by round, and figures are compared within a round.
"""

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, TypeVar

Found = TypeVar("Found")


def in_own_process(work: Callable[..., Found], *arguments: Any) -> Found:
    """What `work(*arguments)` returns in a fresh process, whose memory nothing else shares."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(work, *arguments).result()


def in_turn(
    names: Iterable[str], rounds: int, work: Callable[[str], Found]
) -> dict[str, list[Found]]:
    """What `work(name)` returns in each round, for every name. A round runs every name once."""
    found: dict[str, list[Found]] = {name: [] for name in names}
    for _ in range(rounds):
        for name, results in found.items():
            results.append(work(name))
    return found


def seconds(work: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """How long `work()` takes by the clock."""
    start = clock()
    work()
    return clock() - start


def median_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """The median of the ratios within the rounds."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))
