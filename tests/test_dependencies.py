"""Dependencies between rooms point one way: operator -> modelchain <- trainer.

Each room imports what it may.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Room, and top-level modules it must never import, not even inside a function.
FORBIDDEN = {
    "modelchain": {
        "torch",
        "kopf",
        "kubernetes",
        "modelchain_trainer",
        "modelchain_operator",
        "open_clip",
        "timm",
        "torchvision",
    },
    "trainer": {
        "kopf",
        "kubernetes",
        "modelchain_operator",
        "matplotlib",
        "jinja2",
        "rich",
        "open_clip",
        "timm",
        "torchvision",
    },
    "operator": {"torch", "modelchain_trainer", "numpy", "matplotlib", "open_clip", "timm", "torchvision"},
}
# Files that are there for such a module, which they import inside a function: (file, module).
ADAPTERS = {
    ("trainer/modelchain_trainer/model/timm_adapter.py", "timm"),
    ("trainer/modelchain_trainer/model/open_clip_adapter.py", "open_clip"),
}
# Package of the operator, and what of the rest of the operator it may import.
OPERATOR_PACKAGES = {
    "kubernetes": set[str](),
    "jobs": {"kubernetes"},
    "kueue": {"kubernetes", "jobs"},
    "informers": {"kubernetes", "jobs", "work_queue", "gc_tuning"},
    "stores": {"kubernetes", "settings", "acceptance"},
    "telemetry": {"kubernetes", "jobs", "kueue", "stores", "settings"},
}
# Modules that may only be imported inside functions: every command starts without them.
LAZY = {"boto3", "botocore", "matplotlib", "numpy", "jinja2", "rich", "PIL", "fsspec"}
# Modules that are themselves only imported where they are needed.
LAZILY_IMPORTED = ("modelchain/store/s3", "modelchain/report/", "modelchain/local/")


def _files(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


def _imports(tree: ast.AST, *, top_level_only: bool = False) -> Iterator[tuple[int, str]]:
    """Line and top-level module of each import; those for type checkers only do not count."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.partition(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None and node.level == 0:
            yield node.lineno, node.module.partition(".")[0]
        elif not (top_level_only and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)):
            yield from _imports(node, top_level_only=top_level_only)


def _imports_within(room: str, tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and name of each package or module at the top of the room that is imported."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            top, _, rest = node.module.partition(".")
            if top == room:
                names = [rest.partition(".")[0]] if rest else [alias.name for alias in node.names]
                yield from ((node.lineno, name) for name in names)


@pytest.mark.parametrize("room", sorted(FORBIDDEN))
def test_room_imports_nothing_it_must_not(room: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for path in _files(room)
        for line, module in _imports(ast.parse(path.read_text(encoding="utf-8")))
        if module in FORBIDDEN[room] and (str(path.relative_to(ROOT)), module) not in ADAPTERS
    ]
    assert found == []


def test_adapters_import_their_library_only_where_a_model_of_it_is_built() -> None:
    found = [
        (name, module)
        for name, library in ADAPTERS
        for _, module in _imports(ast.parse((ROOT / name).read_text(encoding="utf-8")), top_level_only=True)
        if module == library
    ]
    assert found == []


def test_packages_of_the_operator_import_what_they_may() -> None:
    """Only the modules at the top, which tell the story, may import all of them."""
    room = ROOT / "operator" / "modelchain_operator"
    assert {path.parent.name for path in room.glob("*/__init__.py")} == set(OPERATOR_PACKAGES)
    found = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for package, allowed in OPERATOR_PACKAGES.items()
        for path in sorted((room / package).rglob("*.py"))
        for line, name in _imports_within("modelchain_operator", ast.parse(path.read_text(encoding="utf-8")))
        if name not in allowed | {package}
    ]
    assert found == []


def test_core_imports_what_is_heavy_only_where_it_is_used() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for path in _files("modelchain")
        if not str(path.relative_to(ROOT)).startswith(LAZILY_IMPORTED)
        for line, module in _imports(ast.parse(path.read_text(encoding="utf-8")), top_level_only=True)
        if module in LAZY
    ]
    assert found == []


def test_no_room_named_operator_hides_the_standard_library() -> None:
    assert not (ROOT / "operator" / "__init__.py").exists()


def test_every_room_says_what_it_is() -> None:
    """A folder's __init__.py has a docstring that says what lives there."""
    silent = [
        str(path.relative_to(ROOT))
        for room in ("modelchain", "trainer/modelchain_trainer", "operator")
        for path in (ROOT / room).rglob("__init__.py")
        if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert silent == []
