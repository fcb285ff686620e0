"""A program is kept only whole, and only if it gives what the model gives."""

import pytest
import torch
from torch import nn

from moeapps.errors import CheckpointError
from moeapps.training.export import export_onnx, export_program

EXPORTS = {"x.pt2": export_program, "x.onnx": export_onnx}


class Counting(nn.Module):
    """Gives other numbers each time it is called, which a program cannot do."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return x + self.calls


def rows(number):
    return (torch.ones(3 + number, 2),)


@pytest.mark.parametrize("name", EXPORTS)
def test_a_program_that_differs_is_not_kept(name, tmp_path):
    if name.endswith("onnx"):
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    shapes = ({0: torch.export.Dim("rows", min=2)},)
    EXPORTS[name](nn.Linear(2, 1).eval(), rows, dynamic_shapes=shapes, path=tmp_path / name)
    before = (tmp_path / name).read_bytes()
    with pytest.raises(CheckpointError, match="differs from the model"):
        EXPORTS[name](Counting(), rows, dynamic_shapes=shapes, path=tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_bytes() == before
