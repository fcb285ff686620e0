"""``moeapps export RUN``: the trained network as files that other programs can load."""

import argparse
import importlib
from pathlib import Path
from typing import Any

from moeapps.errors import ConfigError

FORMATS = ("safetensors", "torch", "onnx")


def register(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "export", help="write a run's network for use elsewhere", allow_abbrev=False
    )
    parser.add_argument("folder", metavar="RUN", help="run folder, or a checkpoint file")
    parser.add_argument(
        "--format", choices=FORMATS, default="safetensors",
        help="safetensors: weights and config.json for moeapps.load_model; "
        "torch: a torch.export program for any number of rows; onnx: the same for onnxruntime "
        "[safetensors]",
    )  # fmt: skip
    parser.add_argument("--out", metavar="DIR", help="where to write [export/ in the run]")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Rebuild the network from its checkpoint and write it."""
    from moeapps.cli.console import console
    from moeapps.cli.evaluate import find_checkpoint, trained_module
    from moeapps.training.export import ONNX, PROGRAM, export_onnx, export_program, save_model

    folder, file = find_checkpoint(options.folder)
    out = Path(options.out or (folder.path if folder else file.parent) / "export")
    module, _ = trained_module(file)
    try:
        if options.format == "safetensors":
            save_model(module, out)
            text = f'{out}\nload it with: moeapps.load_model("{out}")'
        else:
            domain = importlib.import_module(
                f"moeapps.{type(module).__module__.split('.')[1]}.export"
            )
            inputs, shapes = domain.export_inputs(module)
            network = getattr(domain, "export_network", _network)(module)
            if options.format == "torch":
                path = out / PROGRAM
                export_program(network, inputs, dynamic_shapes=shapes, path=path)
                text = f'{path}\nload it with: torch.export.load("{path}").module()'
            else:
                path = out / ONNX
                export_onnx(network, inputs, dynamic_shapes=shapes, path=path)
                text = f'{path}\nload it with: onnxruntime.InferenceSession("{path}")'
    except OSError as error:
        raise ConfigError(f"Cannot write in {out} ({error}). Choose --out DIR.") from error
    console().print(text, markup=False)
    return 0


def _network(module: Any) -> Any:
    return module.model
