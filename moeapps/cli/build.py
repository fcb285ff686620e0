"""From a checked configuration to model, data and trainer, through Lightning's command line."""

import contextlib
import logging
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jsonargparse
import lightning.pytorch as pl
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from moeapps.errors import ConfigError
from moeapps.training.checkpoints import AtomicCheckpointIO

# For modules that do not end their training themselves.
DEFAULT_EPOCHS = 200

_TRAINER_DEFAULTS = {
    "devices": 1,
    "num_sanity_val_steps": 0,
    "enable_model_summary": False,
    "log_every_n_steps": 10,
}

# Advice of Lightning's that does not apply here: graphs are one batch and need no workers, runs
# have their own folder, and progress and results are printed by moeapps.
_WARNINGS = (
    r".*does not have many workers.*",
    r".*The number of training batches .* is smaller than the logging interval.*",
    r".*Checkpoint directory .* exists and is not empty.*",
    r".*is smaller than the `accumulate_grad_batches`.*",
    r".*GPU available but not used.*",
    r".*LeafSpec.* is deprecated.*",
    r".*overridden `transfer_batch_to_device` in `LightningModule`.*",
    r".*torch\.jit\.script(_method)?` is deprecated.*",  # PyTorch Geometric, when it is imported
)
_INFO = re.compile(
    r"Seed set to|GPU available|TPU available|HPU available|💡|`Trainer\.fit` stopped"
    r"|Loading `train_dataloader` to estimate|Received SIGTERM|Restor(ing|ed)"
    r"|Loaded model weights|LOCAL_RANK|\nDetected KeyboardInterrupt"
    r"|The following callbacks returned in `LightningModule\.configure_callbacks`"
)


@dataclass
class Built:
    """What a configuration describes.

    Args:
        model: The Lightning module.
        data: The data module.
        config: The configuration with every default of model and data written out.
        make_trainer: Builds the trainer, given callbacks and loggers.
    """

    model: pl.LightningModule
    data: pl.LightningDataModule
    config: dict[str, Any]
    make_trainer: Callable[..., pl.Trainer]


class _CLI(LightningCLI):
    """Lightning's, given a mapping instead of ``sys.argv``; the trainer is made later."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._given = config
        super().__init__(
            save_config_callback=None,
            seed_everything_default=0,
            parser_kwargs={"exit_on_error": False},
            subclass_mode_model=True,
            subclass_mode_data=True,
            run=False,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = parser.parse_object(self._given)

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        return None


def build(config: dict[str, Any]) -> Built:
    """Instantiate what a checked configuration describes.

    Args:
        config: Passed through :func:`moeapps.cli.configs.check_config` before.

    Raises:
        ConfigError: A value has the wrong type, with the key.
    """
    given = {key: value for key, value in config.items() if key != "schema"}
    try:
        cli = _CLI(given)
    except (jsonargparse.ArgumentError, SystemExit) as error:
        raise ConfigError(_readable(str(error))) from error
    parsed = cli.config.as_dict()
    full = {
        "schema": config["schema"],
        "seed_everything": parsed["seed_everything"],
        "model": parsed["model"],
        "data": parsed["data"],
        "trainer": config.get("trainer") or {},
    }
    named = set(full["trainer"])
    wanted = {**dict(cli.config_init["trainer"])}

    def make_trainer(
        *, callbacks: list[pl.Callback], loggers: list[Any], default_root_dir: str | None = None
    ) -> pl.Trainer:
        arguments = dict(wanted)
        for key, value in _TRAINER_DEFAULTS.items():
            if key not in named:
                arguments[key] = value
        if arguments.get("max_epochs") is None and arguments.get("max_steps") == -1:
            ends_itself = getattr(cli.model, "keeps_best", False)
            usual = -1 if ends_itself else DEFAULT_EPOCHS
            arguments["max_epochs"] = getattr(cli.model, "default_epochs", usual)
        own = arguments.get("callbacks") or []
        arguments["callbacks"] = [*callbacks, *(own if isinstance(own, list) else [own])]
        more = arguments.get("logger") or []
        if more is not True:
            loggers = [*loggers, *(more if isinstance(more, list) else [more])]
        arguments["logger"] = loggers or False
        plugins = arguments.get("plugins") or []
        plugins = plugins if isinstance(plugins, list) else [plugins]
        arguments["plugins"] = [*plugins, AtomicCheckpointIO()]
        arguments["default_root_dir"] = arguments.get("default_root_dir") or default_root_dir
        try:
            return pl.Trainer(**arguments)
        except (MisconfigurationException, ValueError, ImportError) as error:
            raise ConfigError(
                f"The trainer's arguments do not fit this machine: {error}"
            ) from error

    return Built(cli.model, cli.datamodule, full, make_trainer)


def _readable(message: str) -> str:
    """What jsonargparse's message says about the innermost key: expected type and given value."""
    whole = "\n".join(line.strip() for line in message.splitlines() if line.strip())
    keys = list(re.finditer(r'Parser key "([^"]+)":', whole))
    if keys:
        rest = whole[keys[-1].end() :]
        types = re.search(r"Subtypes: \[(.*)\]", rest) or re.search(
            r"Expected an? (.*)\. Got", rest
        )
        value = re.search(r"(?:Given|Got) value: (.*)", rest)
        if types and value and not value[1].startswith("Namespace("):
            expected = types[1].replace("typing.", "")
            expected = re.sub(r"<class '(?:[\w.]+\.)?(\w+)'>", r"\1", expected)
            expected = re.sub(r", (?![^\[]*\])", " or ", expected)  # not inside brackets
            return (
                f"{keys[-1][1]}={value[1]} does not fit. "
                f"Expected {expected.replace('NoneType', 'null')}."
            )
    return f"The configuration does not fit: {whole}"


@contextlib.contextmanager
def quiet() -> Any:
    """Leave out the warnings and tips of Lightning's that do not apply; keep all others."""

    def relevant(record: logging.LogRecord) -> bool:
        return record.levelno > logging.INFO or not _INFO.search(record.getMessage())

    names = (
        "lightning.pytorch.utilities.rank_zero",
        "lightning.fabric.utilities.seed",
        "lightning.fabric.utilities.rank_zero",
        "lightning.pytorch.accelerators.cuda",
    )
    loggers = [logging.getLogger(name) for name in names]
    for logger in loggers:
        logger.addFilter(relevant)
    try:
        with warnings.catch_warnings():
            for message in _WARNINGS:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        for logger in loggers:
            logger.removeFilter(relevant)
