import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "recipes" / "benchmarks"


@pytest.fixture
def rounds(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import rounds

    return rounds


def test_ratios_compare_rounds_that_both_variants_took_part_in(rounds):
    slow = rounds.Result({0: rounds.Sample(0.030, 1.0), 4: rounds.Sample(0.050, 1.0)})
    fast = rounds.Result({n: rounds.Sample(0.010, 0.5) for n in range(4)} | {4: rounds.Sample(0.020, 0.5)})

    assert slow.over(fast) == pytest.approx((0.030 / 0.010 + 0.050 / 0.020) / 2)
    assert slow.above(fast) == pytest.approx((20 + 30) / 2)
    assert slow.over(fast, "wall") == 2


@pytest.mark.slow
def test_quick_run_prints_every_section_and_ends_with_finite_ratios():
    environment = {**os.environ, "PYTHONPATH": str(BENCHMARKS.parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", str(BENCHMARKS / "strategy.py"), "--quick"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=True)
    lines = done.stdout.strip().splitlines()
    ratios = json.loads(lines[-1])

    titles = [line for line in lines if line.startswith("| ") and "CPU ms a step" in line]
    assert len(titles) == 2 * 8  # sections, on one and two processes
    assert all(math.isfinite(value) for value in ratios.values())
    for at in ("1p", "2p"):
        goals = ("over_lightning", "ms_above_raw", "over_sparse", "many_rows_over_few")
        assert {f"{lookups}_{goal}_{at}" for lookups in ("pooled", "sequence") for goal in goals} <= set(ratios)
        assert f"dense_over_ours_{at}" in ratios
    assert {"pooled_table_memory_2p_over_1p", "sequence_table_memory_2p_over_1p"} <= set(ratios)
