"""Whatever stands in a YAML for LightningCLI, a clear refusal or a callback that works."""

import argparse
import sys
import warnings
from typing import Any

import pytest
import yaml
from drawn import SETTINGS
from hypothesis import example, given, settings
from hypothesis import strategies as st
from junk import arguments
from lightning.pytorch import Callback
from lightning.pytorch.cli import LightningArgumentParser
from test_fuzz import REFUSALS, use

from lightning_sparse import cli
from lightning_sparse.catalogue import ALGORITHMS

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # between Lightning and jsonargparse
SCALARS = [None, True, False, 0, 1, -1, 0.5, 2.0, -0.5, 1e308, 10**400, float("nan"), float("inf"), "", "x", "ü☃"]
SCALARS += ["0.5", "rigl", "epoch", "magnitude", "weights", "NM", "null", "~", "[1", "{a: 1}", "lightning_sparse.RigL"]
SCALARS += ["*", "[a"]
PLAIN = st.sampled_from(SCALARS) | st.text(max_size=4) | st.floats() | st.integers()
NESTED = st.lists(PLAIN, max_size=2) | st.dictionaries(st.text(max_size=3), PLAIN, max_size=2)
CLASSES = [f"lightning_sparse.{kind.__name__}" for kind in ALGORITHMS.values()]
CLASSES += [f"lightning_sparse.{name}" for name in ("NM", "ConstantSchedule", "Nothing")] + ["os.system", "nowhere.At"]
_NAMES = st.sampled_from(["every", "stop", "n", "value", "x", "fraction"])
OBJECTS = st.fixed_dictionaries(
    {"class_path": st.sampled_from(CLASSES)},
    optional={"init_args": st.dictionaries(_NAMES, PLAIN, max_size=2)},
)
CALLBACKS = ["MaskUpdater", "DensityLogger", "Regularizer"]


@st.composite
def entries(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """A callback's name and one or two of its arguments."""
    name = draw(st.sampled_from(CALLBACKS))
    names = st.sampled_from([*arguments(name), "densty"])
    return name, draw(st.dictionaries(names, PLAIN | NESTED | OBJECTS, min_size=1, max_size=2))


@pytest.fixture(scope="module")
def parser() -> LightningArgumentParser:
    """LightningCLI's own parser, for the part of its configuration that is ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        made = LightningArgumentParser(exit_on_error=False)
        made.add_argument("--callbacks", type=list[Callback])
        return made


def written(name: str, given: dict[str, Any]) -> str:
    """The YAML."""
    entry = {"class_path": f"lightning_sparse.{name}", "init_args": given}
    return yaml.safe_dump({"callbacks": [entry]}, allow_unicode=True)


def read_and_use(parser: LightningArgumentParser, entry: tuple[str, dict[str, Any]]) -> None:
    """The callback of an entry is made and works, or the refusal names an argument."""
    name, given = entry
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            made = parser.instantiate_classes(parser.parse_string(written(name, given))).callbacks[0]
        except (*REFUSALS, argparse.ArgumentError) as error:
            text = str(error)
        else:
            assert type(made).__name__ == name
            use(made, given)
            return
    # jsonargparse looks for empty keys first, and names the class that they stand in, not the argument.
    empty = "Empty nested key" in text and name in text
    assert empty or any(argument in text for argument in given), text


@settings(SETTINGS, max_examples=60)
@given(entry=entries())
@example(entry=("MaskUpdater", {"densty": {"": None}}))
def test_a_yaml_is_refused_by_name_or_works(parser, entry):
    read_and_use(parser, entry)


@pytest.mark.long
@settings(SETTINGS, max_examples=1000)
@given(entry=entries())
def test_many_yamls_are_refused_by_name_or_work(parser, entry):
    read_and_use(parser, entry)


HOSTILE = [
    {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "pwned"]}},
    {"class_path": "os.system", "init_args": {"command": "touch pwned"}},
    {"class_path": "builtins.exec", "init_args": {"source": "open('pwned', 'w')"}},
    "__import__('os').system('touch pwned')",
]


@pytest.mark.parametrize("hostile", HOSTILE, ids=str)
@pytest.mark.parametrize("argument", ["algorithm", "pattern", "density", "include"])
def test_a_yaml_runs_nothing_but_what_the_arguments_are_for(parser, tmp_path, argument, hostile):
    text = written("MaskUpdater", {argument: hostile})
    with pytest.raises((*REFUSALS, argparse.ArgumentError), match=argument):
        parser.instantiate_classes(parser.parse_string(text))
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"density": float("nan")}, ["density", "nan"]),
        ({"algorithm": {"class_path": "lightning_sparse.RigL", "init_args": {"every": -3}}}, ["every", "-3"]),
        ({"algorithm": {"class_path": "lightning_sparse.NM"}}, ["algorithm", "NM"]),
        ({"pattern": {"class_path": "lightning_sparse.NM", "init_args": {"n": 4, "m": 2}}}, ["n=4", "m=2"]),
        ({"include": ["ü☃*"]}, ["ü☃*", "candidates: layer.weight"]),
    ],
    ids=str,
)
def test_the_console_script_says_what_is_wrong(monkeypatch, capsys, tmp_path, given, words):
    quiet = {"accelerator": "cpu", "max_steps": 1, "logger": False, "enable_progress_bar": False}
    entry = {"class_path": "lightning_sparse.MaskUpdater", "init_args": given}
    model = "lightning.pytorch.demos.boring_classes.BoringModel"
    config = {"seed_everything": 1, "model": {"class_path": model}, "trainer": {**quiet, "callbacks": [entry]}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")  # the script sets it; this takes it back
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", ["lightning-sparse", "fit", "--config=config.yaml"])
    with pytest.raises((SystemExit, ValueError)) as caught:
        cli.main()
    text = capsys.readouterr().err + str(caught.value)
    assert all(word in text for word in words), text
