import importlib.util
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).parents[2] / "recipes" / "benchmarks" / "peers" / "run.py"


@pytest.fixture
def run(monkeypatch):
    spec = importlib.util.spec_from_file_location("peers_run", RUN)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # where its dataclass looks up its annotations
    spec.loader.exec_module(module)
    return module


def side(cpu, ndcg):
    return {"train_cpu": cpu, "train_wall": cpu, "eval_cpu": cpu, "eval_wall": cpu, "peak_mb": cpu, "ndcg@10": ndcg}


@pytest.mark.parametrize(("ours", "word"), [(0.10, "met"), (0.0999, "not met")])
def test_quality_is_met_from_the_peers_ndcg_on(run, ours, word):
    results = {("RePlay", 50): side(10.0, 0.1), (run.OURS, 50): side(4.0, ours)}
    values = run.ratios(results, [50])
    assert values["train_cpu_ratio_l50"] == 4.0 / 10.0
    (line,) = [line for line in run.verdicts(values).splitlines() if line.startswith("ndcg_ratio_l50")]
    assert line.endswith(f"wanted at least 1.0: {word}")


def test_a_side_compared_in_speed_alone_trains_one_epoch_and_says_so(run):
    assert [run.epochs_of(name, 6) for name in ("RePlay", run.OURS, "RecTools")] == [6, 6, 1]
    table = run.table({(name, 50): side(1.0, 0.1) for name in ("RePlay", "RecTools")}, {50: 6})
    assert "0.1000 (6 epochs)" in table.splitlines()[2]
    assert "0.1000 (1 epoch)" in table.splitlines()[3]
