"""Trained models outside of training: a folder that rebuilds one, a torch program, ONNX."""

import importlib.util
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from moeapps.data.integrity import atomic_write
from moeapps.errors import CheckpointError, ConfigError
from moeapps.training.checkpoints import check_state_dict
from moeapps.training.classes import check_class_path, import_class

FORMAT = 1
WEIGHTS, CONFIG, PROGRAM = "model.safetensors", "config.json", "model.pt2"
ONNX = "model.onnx"
_ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def save_model(module: nn.Module, folder: str | Path) -> Path:
    """Write the network of a trained Lightning module as ``model.safetensors`` and ``config.json``.

    Args:
        module: Has the network as ``model``, plain ``hparams``, and ``build()`` that makes the
            network from them.
        folder: Made if needed.

    Raises:
        ConfigError: A hyper-parameter is no plain value.
    """
    folder = Path(folder)
    kind = type(module)
    config = {
        "format": FORMAT,
        "class_path": f"{kind.__module__}.{kind.__qualname__}",
        "init_args": dict(module.hparams),  # type: ignore[arg-type]
    }
    check_class_path(config["class_path"], where="The model's class")
    try:
        text = json.dumps(config, indent=2) + "\n"
    except TypeError as error:
        raise ConfigError(
            f"{kind.__name__} has an argument that JSON cannot hold ({error}). Expected numbers, "
            "text, lists and mappings."
        ) from error
    network = module.model
    assert isinstance(network, nn.Module)
    # safetensors refuses two names for one memory, so every tensor is copied.
    weights = {
        name: value.detach().cpu().contiguous().clone()
        for name, value in network.state_dict().items()
    }
    with atomic_write(folder / WEIGHTS) as file:
        file.write(save_tensors(weights, metadata={"format": "pt"}))
    with atomic_write(folder / CONFIG) as file:
        file.write(text.encode())
    return folder


def load_model(folder: str | Path) -> nn.Module:
    """The network in a folder that ``moeapps export RUN --format safetensors`` wrote.

    No code in the folder runs: the configuration names a class of moeapps, the weights are numbers.

    Args:
        folder: Holds ``config.json`` and ``model.safetensors``.

    Returns:
        The network in evaluation mode, on the CPU.

    Raises:
        CheckpointError: A file is missing, damaged or belongs to another model.
        ConfigError: ``config.json`` names something that is not allowed.

    Example:
        >>> load_model("nowhere")
        Traceback (most recent call last):
        moeapps.errors.CheckpointError: nowhere holds no config.json. ...
    """
    folder = Path(folder)
    config, weights = _read_config(folder / CONFIG), _read_weights(folder / WEIGHTS)
    kind = import_class(config["class_path"], where=str(folder / CONFIG))
    try:
        network = kind(**config["init_args"]).build()
    except (TypeError, AttributeError) as error:
        raise ConfigError(
            f"{folder / CONFIG} does not fit {config['class_path']}: {error}. "
            "Export the run again with this version of moeapps."
        ) from error
    check_state_dict(network, weights)
    network.load_state_dict(weights)
    network.eval()
    assert isinstance(network, nn.Module)
    return network


def export_program(
    model: nn.Module,
    make_inputs: Callable[[int], Sequence[Any]],
    *,
    dynamic_shapes: Any,
    path: str | Path,
    tolerance: float = 1e-5,
) -> None:
    """Write the model as a ``torch.export`` program that takes any number of rows.

    The program is kept only if it gives what the model gives, on inputs of two sizes it has not
    been traced with.

    Args:
        model: In evaluation mode.
        make_inputs: Inputs for a whole number; different numbers, different sizes.
        dynamic_shapes: As of :func:`torch.export.export`.
        path: The ``.pt2`` file.
        tolerance: Largest difference, relative and absolute.

    Raises:
        CheckpointError: The model cannot be exported, or the program gives other numbers.
    """
    program = _trace(model, make_inputs, dynamic_shapes)
    _compare(model, program.module(), make_inputs, tolerance)
    with _whole(path) as temporary:
        torch.export.save(program, temporary)


def export_onnx(
    model: nn.Module,
    make_inputs: Callable[[int], Sequence[Any]],
    *,
    dynamic_shapes: Any,
    path: str | Path,
    tolerance: float = 1e-5,
) -> None:
    """Write the model as an ONNX file, for example for onnxruntime.

    Outputs have the names of the mapping the model gives, or ``output_0`` and so on; inputs are
    ``input/<key>/<key>`` by the mappings they stand in, or ``input_0`` and so on. The file is kept
    only if onnxruntime gives what the model gives, on inputs of two sizes it has not been traced
    with.

    Args:
        model: In evaluation mode.
        make_inputs: Inputs for a whole number; different numbers, different sizes.
        dynamic_shapes: As of :func:`torch.export.export`.
        path: The ``.onnx`` file.
        tolerance: Largest difference, relative and absolute.

    Raises:
        ConfigError: A package is missing.
        CheckpointError: The model cannot be exported, or onnxruntime gives other numbers.
    """
    for package in _ONNX_PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"The ONNX format needs {package}. Run: pip install {' '.join(_ONNX_PACKAGES)}"
            )
    import onnxruntime

    program = _trace(model, make_inputs, dynamic_shapes)
    with torch.no_grad():
        outputs = _named(model(*make_inputs(0)), "output")
    with _whole(path) as temporary:
        try:
            _translate(program, list(outputs), list(_feed(make_inputs(0))), temporary)
            session = onnxruntime.InferenceSession(temporary)
        except Exception as error:  # the exporter and the runtime raise many kinds
            raise CheckpointError(_refusal(model, "an ONNX file", error)) from error

        def run(*inputs: Any) -> dict[str, Tensor]:
            feed = {name: value.numpy() for name, value in _feed(inputs).items()}
            known = {entry.name for entry in session.get_inputs()}  # an input may be of no use
            given = {name: value for name, value in feed.items() if name in known}
            return dict(zip(outputs, map(torch.from_numpy, session.run(None, given)), strict=True))

        _compare(model, run, make_inputs, tolerance)


def _translate(
    program: torch.export.ExportedProgram, outputs: list[str], inputs: list[str], path: Path
) -> None:
    """Write a program as ONNX, without what the exporter tells of packages and constants."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = torch.onnx.export(
                program, dynamo=True, verbose=False, output_names=outputs, input_names=inputs
            )
        assert found is not None
        found.save(path)
    finally:
        logging.disable(disabled)


def _trace(
    model: nn.Module, make_inputs: Callable[[int], Sequence[Any]], dynamic_shapes: Any
) -> torch.export.ExportedProgram:
    try:
        return torch.export.export(
            model, tuple(make_inputs(0)), dynamic_shapes=dynamic_shapes, strict=False
        )
    except Exception as error:  # torch.export raises many kinds
        raise CheckpointError(_refusal(model, "a torch program", error)) from error


def _refusal(model: nn.Module, what: str, error: Exception) -> str:
    deepest: BaseException = error
    while deepest.__cause__ is not None:  # the exporters wrap what went wrong in advice
        deepest = deepest.__cause__
    reason = str(deepest).strip().splitlines()
    return (
        f"{type(model).__name__} cannot be exported as {what} "
        f"({type(deepest).__name__}: {reason[0] if reason else ''}). Use --format safetensors."
    )


def _compare(
    model: nn.Module,
    exported: Callable[..., Any],
    make_inputs: Callable[[int], Sequence[Any]],
    tolerance: float,
) -> None:
    for number in (1, 2):
        inputs = tuple(make_inputs(number))
        with torch.no_grad():
            expected, got = model(*inputs), exported(*inputs)
        for left, right in zip(_tensors(expected), _tensors(got), strict=True):
            if not torch.allclose(left, right, rtol=tolerance, atol=tolerance):
                raise CheckpointError(
                    f"The exported program of {type(model).__name__} differs from the model by "
                    f"{float((left - right).abs().max()):.2g}; it was not kept. "
                    "Use --format safetensors."
                )


@contextmanager
def _whole(path: str | Path) -> Iterator[Path]:
    """A temporary file of the same kind beside ``path``; takes its name if nothing fails."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _feed(inputs: Sequence[Any]) -> dict[str, Tensor]:
    """Inputs by name; the prefix keeps keys such as ``cat`` apart from names of operations."""
    named = _named(tuple(inputs), "input")
    return {key if key.startswith("input_") else f"input/{key}": t for key, t in named.items()}


def _named(values: Any, stem: str) -> dict[str, Tensor]:
    """Tensors in nested tuples and mappings, by the keys that lead there or by number."""
    found: dict[str, Tensor] = {}

    def visit(value: Any, keys: tuple[str, ...]) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                visit(inner, (*keys, str(key)))
        elif isinstance(value, (tuple, list)):
            for inner in value:
                visit(inner, keys)
        else:
            found["/".join(keys) if keys else f"{stem}_{len(found)}"] = value

    visit(values, ())
    return found


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    parts = output.values() if isinstance(output, dict) else output
    return [part for part in parts if isinstance(part, Tensor)]


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path.parent} holds no {path.name}. Expected a folder that 'moeapps export RUN "
            "--format safetensors' wrote."
        ) from None
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path} is damaged ({error}). Export the run again.") from error
    if not isinstance(config, dict) or not {"class_path", "init_args"} <= config.keys():
        raise CheckpointError(f"{path} does not describe a model. Export the run again.")
    if config.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has format {config.get('format')}, this moeapps reads {FORMAT}. "
            "Export the run again, or upgrade moeapps."
        )
    return config


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        return load_tensors(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(
            f"{path.parent} holds no {path.name}. Export the run again."
        ) from None
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is cut short or damaged ({error}). Export the run again."
        ) from error
