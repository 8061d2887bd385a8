import pytest
from jsonargparse import ArgumentError

from lightning_mvrec.cli.parser import RecipeParser, explain

NESTED = """Parser key "model":
  Does not validate against any of the Union subtypes
  Errors:
    - Problem with given class_path 'a.B':
        Parser key "encoders":
          Type collections.abc.Callable expects a function: Option 'half_lief' is not accepted. Got value: ...
    - Expected a <class 'NoneType'>
  Given value: {...}"""


def test_a_misspelt_key_is_named_with_its_full_path_and_file(tmp_path):
    recipe = tmp_path / "a.yaml"
    recipe.write_text("model: {init_args: {encoders: {click: {init_args: {half_lief: 3}}}}}")
    message = explain(NESTED, ["fit", "--config", str(recipe)])
    assert message == f"model.init_args.encoders.click.init_args.half_lief ({recipe}) is not a known key"


def test_a_key_known_elsewhere_is_named_where_it_is_wrong(tmp_path):
    recipe = tmp_path / "a.yaml"
    recipe.write_text("trainer: {max_epochs: 3}\ntraner: {max_epochs: 3}")
    message = explain("Subcommand 'fit' does not accept option 'traner.max_epochs'", ["fit", "--config", str(recipe)])
    assert message == f"traner.max_epochs ({recipe}) is not a known key"


def test_a_class_that_there_is_not_is_named_with_its_place_and_those_that_there_are(tmp_path):
    recipe = tmp_path / "a.yaml"
    recipe.write_text("model: {init_args: {encoders: {click: {class_path: lightning_mvrec.encoders.GRUEncodr}}}}")
    message = """Parser key "model":
      Problem with given class_path 'lightning_mvrec.MultiViewModule':
        Parser key "encoders": module 'lightning_mvrec.encoders' has no attribute 'GRUEncodr'."""
    said = explain(message, ["fit", "--config", str(recipe)])
    place = f"model.init_args.encoders.click.class_path ({recipe})"
    assert said.startswith(f"{place}: there is no lightning_mvrec.encoders.GRUEncodr; did you mean 'GRUEncoder'? There")
    assert "AttentionEncoder, BagEncoder" in said


def test_the_command_line_is_named():
    assert explain(NESTED, ["fit", "--model.half_lief=3"]) == "model.half_lief (command line) is not a known key"


def test_items_of_lists_are_numbered(tmp_path):
    recipe = tmp_path / "a.yaml"
    recipe.write_text("trainer: {callbacks: [{init_args: {}}, {init_args: {half_lief: 1}}]}")
    assert "trainer.callbacks.1.init_args.half_lief" in explain(
        NESTED.replace('"model"', '"trainer.callbacks"'), ["fit", "--config", str(recipe)]
    )


MONITOR = """Parser key "trainer.callbacks":
  Errors:
    - Problem with given class_path 'a.Monitor':
        Option 'verbose' is not accepted"""


@pytest.mark.parametrize(
    ("message", "unknown"),
    [
        ("Subcommand 'predict' does not accept option 'verbose'", "verbose"),
        (MONITOR, "trainer.callbacks.1.init_args.verbose"),
    ],
)
def test_a_key_of_the_same_name_that_is_known_is_not_named(tmp_path, message, unknown):
    recipe = tmp_path / "a.yaml"
    classes = ("a.Checkpoint", "a.Monitor")
    callbacks = "".join(f"{{class_path: {name}, init_args: {{verbose: true}}}}, " for name in classes)
    recipe.write_text(f"verbose: true\ntrainer: {{callbacks: [{callbacks}]}}")
    assert explain(message, ["predict", "--config", str(recipe)]) == f"{unknown} ({recipe}) is not a known key"


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("Parser key \"a\":\n  Errors:\n    - Expected a <class 'int'>. Got value: x", "Expected a <class 'int'>"),
        (
            'Parser key "model":\n  Type typing.Callable[[int], x.Y] expects a function or a callable class: Problem '
            "with given class_path 'a.Fusoin': module 'a' has no attribute 'Fusoin'. Got value: Namespace(a='b')",
            "module 'a' has no attribute 'Fusoin'",
        ),
        ("Problems parsing config: line 1", "Problems parsing config: line 1"),
    ],
)
def test_other_refusals_keep_their_reason(message, expected):
    assert expected in explain(message, ["fit"])


def test_a_parser_that_only_tries_a_value_does_not_exit():
    parser = RecipeParser(exit_on_error=False)
    parser.add_argument("--width", type=int)
    with pytest.raises(ArgumentError):
        parser.parse_args(["--width", "wide"])
