import pytest

from lightning_mvrec.cli.report import Result, draw_comparison, draw_run, format_table, read_results, write_results

RESULTS = [
    Result("model", "test", "ndcg@10", 0.30, 0),
    Result("model", "test", "ndcg@10", 0.34, 1),
    Result("popularity", "test", "ndcg@10", 0.10),
    Result("view:cart", "test", "ndcg@10", 0.20, 0),
    Result("model", "val", "ndcg@10", 0.9, 0),
]


def test_results_come_back_as_they_were_written(tmp_path):
    write_results(tmp_path / "results.csv", RESULTS)
    assert read_results(tmp_path / "results.csv") == RESULTS
    assert (tmp_path / "results.csv").read_text().splitlines()[0] == "model,split,metric,value,seed"
    assert [path.name for path in tmp_path.iterdir()] == ["results.csv"]


def test_the_table_shows_means_over_seeds_best_first():
    lines = format_table(RESULTS, "test", "ndcg@10").splitlines()
    assert [line.split()[0] for line in lines] == ["test", "model", "view:cart", "popularity"]
    assert "0.3200 ± 0.0283" in lines[1]  # (0.30 + 0.34) / 2; 0.04 / sqrt(2)


def test_the_smallest_error_comes_first():
    rows = [Result("a", "test", "rmse", 1.0), Result("b", "test", "rmse", 0.5)]
    assert format_table(rows, "test", "rmse", largest_first=False).splitlines()[1].startswith("b")


def test_a_split_without_results_says_so():
    assert format_table(RESULTS, "train", "ndcg@10") == "train: no results"


@pytest.mark.parametrize("weights", [{}, {"cart": 0.4, "view": 0.6}])
def test_pictures_are_written(tmp_path, weights):
    draw_run(tmp_path / "a.png", [{"train/loss": 1.0, "val/ndcg@10": 0.1}, {"train/loss": 0.5}], weights, "ndcg@10")
    draw_comparison(tmp_path / "b.png", RESULTS, "test", "ndcg@10")
    for name in ("a.png", "b.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
