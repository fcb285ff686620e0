"""Trained models outside of training: a folder that rebuilds one, and a torch program."""

import json
from collections.abc import Callable, Sequence
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
    try:
        program = torch.export.export(
            model, tuple(make_inputs(0)), dynamic_shapes=dynamic_shapes, strict=False
        )
    except Exception as error:  # torch.export raises many kinds
        raise CheckpointError(
            f"{type(model).__name__} cannot be exported as a torch program "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}). "
            "Use --format safetensors."
        ) from error
    for number in (1, 2):
        inputs = tuple(make_inputs(number))
        with torch.no_grad():
            expected, got = model(*inputs), program.module()(*inputs)
        for left, right in zip(_tensors(expected), _tensors(got), strict=True):
            if not torch.allclose(left, right, rtol=tolerance, atol=tolerance):
                raise CheckpointError(
                    f"The exported program of {type(model).__name__} differs from the model by "
                    f"{float((left - right).abs().max()):.2g}; it was not kept. "
                    "Use --format safetensors."
                )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.part.pt2")
    torch.export.save(program, temporary)
    temporary.replace(path)


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
