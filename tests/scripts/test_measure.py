"""What the benchmarks share: processes, rounds, ratios, memory, tables."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import numpy as np
import pytest

from recognition.memory import peak_bytes, resident_bytes
from scripts._tables import csv_table, markdown_table, show_table
from scripts.bench._measure import in_own_process, in_turn, median_ratio, seconds


def test_a_fresh_process_returns_what_the_work_does_and_raises_what_it_raises() -> None:
    assert in_own_process(os.getpid) != os.getpid()
    assert in_own_process(divmod, 7, 2) == (3, 1)
    with pytest.raises(ValueError, match="invalid literal"):
        in_own_process(int, "x")


def test_rounds_run_every_name_once() -> None:
    order: list[str] = []

    def work(name: str) -> int:
        order.append(name)
        return len(order)

    assert in_turn(["a", "b"], 3, work) == {"a": [1, 3, 5], "b": [2, 4, 6]}
    assert order == ["a", "b"] * 3


def test_ratios_are_within_a_round() -> None:
    # The machine is ten times slower in the second round, but the ratio is 2 in each round.
    assert median_ratio([2.0, 20.0, 2.0], [1.0, 10.0, 1.0]) == 2.0


def test_a_clock_can_be_chosen() -> None:
    ticks = iter([10.0, 12.5])
    assert seconds(lambda: None, lambda: next(ticks)) == 2.5
    assert seconds(lambda: sum(range(1000)), time.thread_time) > 0


def test_memory_sees_an_array_come_and_go() -> None:
    size = 200_000_000
    before = resident_bytes()
    array = np.ones(size, np.uint8)
    held = resident_bytes()
    del array
    after = resident_bytes()
    assert 0.9 * size < held - before < 1.2 * size
    assert after - before < 0.2 * size
    assert peak_bytes() > 0.99 * held  # the kernel updates its counters in batches


def test_a_table_is_printed_row_by_row(capsys: pytest.CaptureFixture[str]) -> None:
    def rows() -> Iterator[dict[str, object]]:
        yield {"name": "a", "times": 1.5}
        assert capsys.readouterr().out == "| name | times |\n| --- | --- |\n| a | 1.500 |\n"
        yield {"name": "b", "times": 20000.0}

    assert [row["name"] for row in show_table(rows())] == ["a", "b"]
    assert capsys.readouterr().out == "| b | 20000.000 |\n"
    assert list(markdown_table([])) == []
    assert csv_table([{"a": 1, "b": 'x, "y"'}, {"a": None, "b": ""}]) == 'a,b\n1,"x, ""y"""\n,\n'
