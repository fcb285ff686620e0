"""``moeapps info NAME``: one model, read from its source without importing it."""

import argparse
import ast
import importlib.util
from pathlib import Path
from typing import Any

from moeapps.errors import UnknownNameError
from moeapps.registry import MODELS, ModelEntry, model_info


def register(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "info", help="one model: arguments, paper, an example", allow_abbrev=False
    )
    parser.add_argument("name", help="a name from 'moeapps list', or a class for configurations")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print what is known."""
    from moeapps.cli.configs import CLASSES
    from moeapps.cli.console import console

    out = console()
    if options.name in CLASSES:
        module, _, attribute = CLASSES[options.name].rpartition(".")
        out.print(f"{options.name} (class for configurations)\n", style="bold", markup=False)
        out.print(describe(module, attribute), markup=False)
        return 0
    try:
        entry = model_info(options.name)
    except UnknownNameError:
        raise UnknownNameError(
            "name", options.name, [*MODELS, *CLASSES], hint="See: moeapps list"
        ) from None
    module, _, attribute = entry.target.partition(":")
    name = options.name.rpartition("/")[2]
    out.print(f"{entry.domain}/{name}", style="bold", markup=False)
    out.print(f"{entry.summary}\n", markup=False)
    for label, value in (
        ("task", entry.task),
        ("paper", entry.paper),
        ("needs", f'pip install "moeapps[{entry.domain}]"'),
        ("build", _example(name, entry)),
    ):
        out.print(f"{label:<6} {value}", markup=False)
    out.print(f"\n{describe(module, attribute)}", markup=False)
    return 0


def _example(name: str, entry: ModelEntry) -> str:
    arguments = ", ".join(f"{key}={value!r}" for key, value in entry.example.items())
    return f'moeapps.create_model("{name}", {arguments})'


def describe(module: str, attribute: str) -> str:
    """Signature and docstring of a class or function, from its source.

    Example:
        >>> describe("moeapps.registry", "list_models").splitlines()[0]
        'list_models('
    """
    path = _source(module)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == attribute:
            function = node if isinstance(node, ast.FunctionDef) else _constructor(node)
            signature = _signature(attribute, function) if function else f"{attribute}()"
            text = f"{signature}\n\n{ast.get_docstring(node) or ''}".rstrip()
            built = _built_class(node)
            if any(isinstance(n, ast.ClassDef) and n.name == built for n in tree.body):
                text += f"\n\n{describe(module, built)}"
            return text
    raise UnknownNameError(
        f"name in {module}", attribute, [n.name for n in tree.body if hasattr(n, "name")]
    )


def _built_class(node: ast.ClassDef | ast.FunctionDef) -> str:
    """Name of what a factory returns."""
    returns = node.returns if isinstance(node, ast.FunctionDef) else None
    return returns.id if isinstance(returns, ast.Name) else ""


def _source(module: str) -> Path:
    """The file of a module, found without importing its parents."""
    package = importlib.util.find_spec("moeapps")
    assert package is not None
    assert package.submodule_search_locations
    base = Path(package.submodule_search_locations[0]).joinpath(*module.split(".")[1:])
    return base / "__init__.py" if base.is_dir() else base.with_suffix(".py")


def _constructor(node: ast.ClassDef) -> ast.FunctionDef | None:
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            return item
    return None


def _signature(name: str, function: ast.FunctionDef) -> str:
    arguments = function.args
    plain = [*arguments.posonlyargs, *arguments.args]
    defaults: list[ast.expr | None] = [None] * (len(plain) - len(arguments.defaults))
    lines = [
        _argument(argument, default)
        for argument, default in zip(plain, [*defaults, *arguments.defaults], strict=True)
        if argument.arg != "self"
    ]
    if arguments.vararg:
        lines.append(f"*{arguments.vararg.arg}")
    elif arguments.kwonlyargs:
        lines.append("*")
    lines += [
        _argument(argument, default)
        for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    ]
    if arguments.kwarg:
        lines.append(f"**{arguments.kwarg.arg}")
    return f"{name}(\n" + "".join(f"    {line},\n" for line in lines) + ")"


def _argument(argument: ast.arg, default: ast.expr | None) -> str:
    annotation = f": {ast.unparse(argument.annotation)}" if argument.annotation else ""
    return argument.arg + annotation + (f" = {ast.unparse(default)}" if default is not None else "")
