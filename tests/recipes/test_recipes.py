"""Every recipe in the folder is found, built and stepped, on small files in the published layouts."""

import json
import sys
from pathlib import Path

import pytest
import yaml
from sklearn.metrics import roc_auc_score

from lightning_mvrec.cli import fit, prepare
from lightning_mvrec.cli.report import read_results
from lightning_mvrec.cli.targets import read_targets
from tests.recipes.tiny import write_all

FOLDER = Path(__file__).parents[2] / "recipes"
OVERLAYS = sorted(FOLDER.rglob("hardware/*.yaml"))
RECIPES = sorted(set(FOLDER.rglob("*.yaml")) - set(OVERLAYS))


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_all(root)
    return root


def run(command: str, recipe: Path, data: Path, *words: str) -> None:
    arguments = ["--config", str(recipe), "--data.store_dir", str(data / "store"), *words]
    if "root" not in yaml.safe_load(recipe.read_text())["data"]["init_args"] and recipe.name != "quickstart.yaml":
        arguments += ["--data.root", str(data)]
    if command == "prepare":
        assert prepare.main(arguments) == 0
    else:
        assert fit.main(command, arguments) == 0


def test_all_recipes_are_found():
    names = [str(path.relative_to(FOLDER)) for path in RECIPES]
    assert names == [
        "amazon-beauty/best.yaml",
        "amazon-beauty/multi_view.yaml",
        "amazon-beauty/sasrec.yaml",
        "movielens-100k/click.yaml",
        "movielens-100k/reference.yaml",
        "movielens-1m/best.yaml",
        "movielens-1m/sasrec.yaml",
        "quickstart.yaml",
        "retailrocket/multi_behavior.yaml",
        "taobao/multi_behavior.yaml",
    ]
    assert len(OVERLAYS) == 5


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_recipe_builds_and_takes_a_step(recipe, data, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["mvrec"])
    run("fit", recipe, data, "--trainer.fast_dev_run", "2", "--run_dir", str(tmp_path / "run"))


def test_a_run_that_stacks_leaves_the_sum_beside_its_parts(data, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["mvrec"])
    folder = tmp_path / "run"
    run("fit", FOLDER / "movielens-100k" / "click.yaml", data, "--trainer.max_epochs", "1", "--run_dir", str(folder))
    results = read_results(folder / "results.csv")
    assert {(row.split, row.metric) for row in results if row.model == "stacked"} == {
        ("test", "auc"),
        ("test", "logloss"),
    }
    targets = read_targets(folder / "targets.npz")
    weights = json.loads((folder / "summary.json").read_text())["stack_weights"]
    assert list(weights) == [name for name in targets if name not in ("user", "label", "stacked")]
    assert set(targets["label"].tolist()) == {0.0, 1.0}
    known = next(row.value for row in results if (row.model, row.metric) == ("stacked", "auc"))
    assert known == pytest.approx(roc_auc_score(targets["label"], targets["stacked"]))


@pytest.mark.parametrize(
    ("recipe", "words", "message"),
    [
        ("movielens-1m/best.yaml", ["--stack", "true"], "stack must be false without labelled targets"),
        ("movielens-100k/click.yaml", ["--baselines", "[]"], "stack needs baselines to weigh beside the model"),
    ],
)
def test_what_cannot_be_stacked_is_refused_before_training(recipe, words, message, data, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["mvrec"])
    with pytest.raises(ValueError, match=message):
        run("fit", FOLDER / recipe, data, "--run_dir", str(tmp_path / "run"), *words)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_recipe_says_what_it_is(recipe):
    assert recipe.read_text().startswith("# ")
    assert yaml.safe_load(recipe.read_text())["seed_everything"] == 0


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.stem)
def test_a_hardware_overlay_sets_trainer_arguments_only(overlay):
    from lightning import Trainer
    from lightning.pytorch.cli import LightningArgumentParser

    settings = yaml.safe_load(overlay.read_text())
    assert list(settings) == ["trainer"]
    parser = LightningArgumentParser()
    parser.add_lightning_class_args(Trainer, "trainer")
    parsed = parser.parse_object(settings).trainer
    expected = {"cpu1": ("cpu", 1, 1), "cpu2": ("cpu", 2, 1), "gpu1": ("gpu", 1, 1), "gpu8": ("gpu", 8, 1)}
    expected["torchrun_2x8"] = ("gpu", 8, 2)
    assert (parsed.accelerator, int(parsed.devices), parsed.num_nodes) == expected[overlay.stem]


def test_a_recipe_is_prepared_without_training(data, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["mvrec"])
    for _ in range(2):  # the second time it is there
        run("prepare", FOLDER / "taobao" / "multi_behavior.yaml", data)
        said = capsys.readouterr().out
        assert "taobao" in said
        assert said.count("items in the catalogue") == 1
        assert said.count("view cart: ") == 1


def test_missing_files_say_what_to_download(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["mvrec"])
    with pytest.raises((FileNotFoundError, ValueError), match="Tianchi"):
        run("prepare", FOLDER / "taobao" / "multi_behavior.yaml", tmp_path)
