"""Pretrained weights from a local file; nothing is ever downloaded here."""

from pathlib import Path

import torch
from torch import Tensor, nn

from moeapps.errors import CheckpointError, DataNotFoundError


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a ``.pth`` or ``.safetensors`` file.

    Raises:
        DataNotFoundError: No such file.
        CheckpointError: The file holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise DataNotFoundError(
            f"No weights at {path}. Give the path of a local .pth or .safetensors file; pretrained "
            "weights are not downloaded. Leave weights out to start at random."
        )
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{path} cannot be read as weights: {error}") from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(
            f"{path} holds no state dict of tensors. Save it with torch.save(model.state_dict())."
        )
    return state


def load_into(module: nn.Module, state: dict[str, Tensor], path: str | Path) -> None:
    """Load the entries that ``module`` has; the file may hold more (other stages, a classifier).

    Raises:
        CheckpointError: An entry is missing or has another shape.
    """
    wanted = module.state_dict()
    wrong = [
        f"{name} {list(value.shape)}"
        for name, value in wanted.items()
        if name not in state or state[name].shape != value.shape
    ]
    if wrong:
        raise CheckpointError(
            f"{path} does not fit the backbone: {len(wrong)} entries are missing or have another "
            f"shape, such as {wrong[0]}. Use weights of the same architecture at full width "
            "(reduce_width=False)."
        )
    module.load_state_dict({name: state[name] for name in wanted})
