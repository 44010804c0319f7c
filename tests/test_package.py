"""The package's own rules: who imports whom, what is documented, that the documentation runs."""

import ast
import inspect
import re
import sys
from abc import ABC
from pathlib import Path

import pytest

import lightning_sparse

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lightning_sparse"
MODULES = sorted(PACKAGE.rglob("*.py"))
# From the ground up: a layer imports from layers below it and from itself. Same number: neighbours, not friends.
LAYERS = {"core": 0, "algorithms": 1, "optim": 1, "penalties": 1, "channels": 1, "reparam": 2, "quant": 2, "compute": 2}
LAYERS |= {"catalogue": 3, "metrics": 4, "watch": 4, "export": 4, "callbacks": 5, "__init__": 6, "cli": 7}
OUTSIDE = {0: {"torch"}, 1: {"torch"}, 2: {"torch"}, 4: {"torch", "torchmetrics"}}
OUTSIDE[5] = {"torch", "lightning", "pytorch_lightning"}
EXCEPTIONS = {
    ("core/random_state.py", "numpy"): "deferred: restores numpy's state where the user has numpy",
    ("watch.py", "metrics"): "the one pair of neighbours in order: watch reads metrics",
    ("cli.py", "lightning"): "LightningCLI",
}


def imports(path: Path) -> list[str]:
    """Every module a file imports at run time; what only a type checker sees does not count."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            node.body = []
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.append(node.module or "")
    return found


def layer(parts: list[str]) -> str:
    return parts[0].removesuffix(".py") if parts else "__init__"


def misplaced(path: Path) -> list[str]:
    """The imports of a file that point the wrong way."""
    relative = path.relative_to(PACKAGE)
    own = layer(list(relative.parts))
    wrong = []
    for name in imports(path):
        top, _, rest = name.partition(".")
        target = layer(rest.split(".") if rest else []) if top == "lightning_sparse" else top
        if top == "lightning_sparse":
            fine = target == own or LAYERS[target] < LAYERS[own] or own == "cli"
        else:
            fine = top in sys.stdlib_module_names or top in OUTSIDE.get(LAYERS[own], set())
        if not fine and (relative.as_posix(), target) not in EXCEPTIONS:
            wrong.append(name)
    return wrong


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_point_down(path):
    assert misplaced(path) == []


def test_every_module_has_its_layer_and_every_exception_is_used():
    assert {layer(list(path.relative_to(PACKAGE).parts)) for path in MODULES} == set(LAYERS)
    for file, target in EXCEPTIONS:
        used = [name.removeprefix("lightning_sparse.").partition(".")[0] for name in imports(PACKAGE / file)]
        assert target in used, f"{file} does not import {target} any more: remove the exception"


def test_the_rule_can_fail(tmp_path, monkeypatch):
    bad = tmp_path / "core" / "bad.py"
    bad.parent.mkdir()
    bad.write_text("import lightning\nfrom lightning_sparse.algorithms import RigL\ndef f():\n    import numpy\n")
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    assert misplaced(bad) == ["lightning", "lightning_sparse.algorithms", "numpy"]


@pytest.mark.parametrize("name", lightning_sparse.__all__)
def test_a_public_name_has_an_example_or_is_abstract(name):
    thing = getattr(lightning_sparse, name)
    text = inspect.getdoc(thing) or ""
    own = thing.__dict__.get("__doc__") if inspect.isclass(thing) else thing.__doc__
    assert own, f"{name} has no docstring"
    abstract = inspect.isclass(thing) and (inspect.isabstract(thing) or ABC in thing.__bases__)
    assert abstract or re.search(r"^Example:\n\s+>>> ", text, re.M), f"{name} has no executed example"


def test_public_names_are_sorted_and_complete():
    assert sorted(set(lightning_sparse.__all__)) == sorted(lightning_sparse.__all__)
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    taken = {a.asname or a.name for node in tree.body if isinstance(node, ast.ImportFrom) for a in node.names}
    assert taken == set(lightning_sparse.__all__)


PAGES = [page for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))] if page.exists()]


def blocks(page: Path) -> list[tuple[int, str]]:
    """The python blocks of a page, with the line each begins in."""
    text = page.read_text()
    found = re.finditer(r"^```python[^\n]*\n(.*?)^```", text, re.M | re.S)
    return [(text[: match.start(1)].count("\n"), match.group(1)) for match in found]


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.name)
def test_the_python_of_a_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # some write files
    namespace = {"__name__": "__page__"}
    for line, block in blocks(page):
        code = compile("\n" * line + block, str(page), "exec")
        exec(code, namespace)


def test_the_pages_have_blocks():
    assert sum(len(blocks(page)) for page in PAGES) >= 3


@pytest.mark.parametrize(
    "path",
    [*MODULES, *sorted((ROOT / "tests").rglob("*.py")), *sorted((ROOT / "examples").rglob("*.py"))],
    ids=lambda path: path.relative_to(ROOT).as_posix(),
)
def test_no_file_is_longer_than_300_lines(path):
    assert len(path.read_text().splitlines()) <= 300
