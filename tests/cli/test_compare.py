import json
import subprocess
import sys

import numpy as np
import pytest

from lightning_mvrec.cli import compare
from lightning_mvrec.cli.report import Result, read_results, write_results
from lightning_mvrec.cli.targets import write_targets


def finished(folder, name, seed, value, baseline=None):
    own = compare._folder(folder, name, seed)
    own.mkdir(parents=True)
    results = [Result("model", "test", "ndcg@10", value, seed)]
    if baseline is not None:
        results.append(Result("popularity", "test", "ndcg@10", baseline))
    write_results(own / "results.csv", results)


def test_runs_are_joined_under_the_names_of_the_table(tmp_path):
    for seed in (3, 4):
        finished(tmp_path, "model", seed, 0.3 + seed, 0.1)
        finished(tmp_path, "view:cart", seed, 0.2 + seed)
    rows = compare._collect(tmp_path, [3, 4], ["view:cart"])
    assert [(row.model, row.value, row.seed) for row in rows] == [
        ("model", 3.3, 3),
        ("popularity", 0.1, None),
        ("view:cart", 3.2, 3),
        ("model", 4.3, 4),
        ("view:cart", 4.2, 4),
    ]


def test_the_stacked_sum_belongs_to_the_seed_of_its_model_and_is_no_baseline(tmp_path, capsys):
    for seed in (3, 4):
        for name in ("model", "without:cart"):
            own = compare._folder(tmp_path, name, seed)
            own.mkdir(parents=True)
            rows = [Result("model", "test", "auc", 0.5, seed), Result("stacked", "test", "auc", 0.8 + seed)]
            write_results(own / "results.csv", [*rows, Result("item bias", "test", "auc", 0.4)])
    rows = compare._collect(tmp_path, [3, 4], ["without:cart"])
    assert [(row.value, row.seed) for row in rows if row.model == "stacked"] == [(3.8, 3), (4.8, 4)]
    compare._print_margin(rows, "auc", largest_first=True)
    assert capsys.readouterr().out.splitlines() == ["auc: 1.250 times the best baseline (item bias)"]


def test_the_margin_is_that_of_the_means(capsys):
    rows = [Result("model", "test", "auc", value, seed) for seed, value in enumerate((0.6, 0.8))]
    rows += [Result("view:a", "test", "auc", 0.35, 0), Result("view:b", "test", "auc", 0.2, 0)]
    rows += [Result("popularity", "test", "auc", 0.5)]
    rows += [Result("view:a", "val", "auc", 0.3, 0), Result("view:b", "val", "auc", 0.1, 0)]
    compare._print_margin(rows, "auc", largest_first=True)
    assert capsys.readouterr().out.splitlines() == [
        "auc: 2.000 times the best single view (view:a)",  # 0.7 / 0.35
        "auc: 1.400 times the best baseline (popularity)",  # 0.7 / 0.5
    ]


@pytest.mark.parametrize("text", ["", "a", "1,1", "1.5"])
def test_seeds_that_are_none_are_refused(text):
    with pytest.raises(ValueError, match="seeds must be different whole numbers"):
        compare._seeds(text)


def test_a_run_that_fails_ends_the_comparison_with_its_status(tmp_path, monkeypatch, capsys):
    real = subprocess.Popen

    def fail(command, **options):
        return real([sys.executable, "-c", "print('out of luck'); raise SystemExit(3)"], **options)

    monkeypatch.setattr(subprocess, "Popen", fail)
    with pytest.raises(SystemExit, match="3"):
        compare.main(["--config", "a.yaml", "--run_dir", str(tmp_path)])
    assert "model-seed0 ended with status 3" in capsys.readouterr().err
    assert (tmp_path / "model-seed0.log").read_text() == "out of luck\n"


def test_finished_runs_are_not_run_again(tmp_path, monkeypatch):
    finished(tmp_path, "model", 0, 0.5)
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: pytest.fail("ran again"))
    compare._run(tmp_path, "model", 0, [], jobs=1)
    assert read_results(tmp_path / "model-seed0" / "results.csv")[0].value == 0.5


def test_a_run_that_did_not_finish_is_kept_beside_the_one_that_takes_its_place(tmp_path, monkeypatch):
    own = tmp_path / "model-seed0"
    own.mkdir()
    (own / "config.yaml").write_text("")
    (own / "checkpoint").write_text("of an hour's work")
    real = subprocess.Popen
    done = [sys.executable, "-c", ""]
    monkeypatch.setattr(subprocess, "Popen", lambda command, **options: real(done, **options))
    compare._run(tmp_path, "model", 0, [], jobs=1)
    assert not own.exists()  # free for the run
    assert (tmp_path / "model-seed0-unfinished" / "checkpoint").read_text() == "of an hour's work"


def test_the_single_view_to_beat_is_chosen_on_validation(capsys):
    rows = [Result("model", "test", "auc", 0.7, 0)]
    for name, val, test in (("view:a", 0.3, 0.6), ("view:b", 0.5, 0.35)):
        rows += [Result(name, "val", "auc", val, 0), Result(name, "test", "auc", test, 0)]
    compare._print_margin(rows, "auc", largest_first=True)
    assert capsys.readouterr().out.splitlines() == ["auc: 2.000 times the best single view (view:b)"]  # 0.7 / 0.35


def test_a_run_reads_one_view_or_all_but_one():
    assert compare._words(["-c", "x"], "model", ["a", "b", "c"]) == ["-c", "x"]
    assert compare._words([], "view:b", ["a", "b", "c"]) == ["--model.model.views=[b]"]
    assert compare._words([], "without:b", ["a", "b", "c"]) == ["--model.model.views=[a,c]"]


def test_intervals_come_from_the_targets_that_runs_kept(tmp_path, capsys):
    user = np.arange(50)
    for seed in (0, 1):
        for name, rank in (("model", 1), ("view:cart", 3)):
            finished(tmp_path, name, seed, 0.5)
            arrays = {"user": user, "model": np.full(50, rank), "popularity": np.full(50, 100)}
            write_targets(compare._folder(tmp_path, name, seed) / "targets.npz", arrays)
    compare._print_intervals(tmp_path, [0, 1], ["view:cart"], "ndcg@10")
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].split() == ["model", "-", "view:cart", "ndcg@10", "+0.5000", "[+0.5000,", "+0.5000]"]  # 1 - 1 / 2
    assert lines[-1].split()[-3:] == ["+1.0000", "[+1.0000,", "+1.0000]"]
    assert (tmp_path / "intervals.csv").read_text().count("\n") == 3


@pytest.mark.parametrize("stacks", [True, False])
def test_only_the_model_is_stacked_and_only_it_needs_baselines_again(tmp_path, monkeypatch, stacks):
    given = {}

    def run(folder, name, seed, words, jobs, quiet=True):
        given[name, seed] = " ".join(words)
        finished(folder, name, seed, 0.5, 0.1)
        summary = {"views": ["a", "b", "c"], "primary": "ndcg@10", "largest_first": True}
        summary["stack_weights"] = {"model": 1.0} if stacks else {}
        (compare._folder(folder, name, seed) / "summary.json").write_text(json.dumps(summary))

    monkeypatch.setattr(compare, "_run", run)
    words = ["--config", "recipe.yaml", "--seeds", "0,1", "--views", "a", "--without", "--run_dir", str(tmp_path)]
    assert compare.main(words) == 0
    alone = "--config recipe.yaml --baselines []" + (" --stack false" if stacks else "")
    assert given == {
        ("model", 0): "--config recipe.yaml",
        ("model", 1): "--config recipe.yaml" if stacks else alone,
        **{("view:a", seed): f"{alone} --model.model.views=[a]" for seed in (0, 1)},
        **{("without:a", seed): f"{alone} --model.model.views=[b,c]" for seed in (0, 1)},
    }
