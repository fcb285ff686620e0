"""Attention in compressed rows against the same sums entry by entry."""

import pytest
import torch
from torch.nn import functional as F

from moeapps.graphs.attention import attend
from moeapps.graphs.csr import Pattern


def by_entries(to_source, to_target, z, pattern, kept):
    scores = F.leaky_relu(to_source[pattern.col] + to_target[pattern.row], 0.2)
    out = []
    for node in range(pattern.num_rows):
        own = pattern.row == node
        attention = scores[own].softmax(0) * kept[own]
        out.append((attention[:, :, None] * z[pattern.col[own]]).sum(0))
    return torch.stack(out)


@pytest.mark.parametrize("num_edges", [0, 40])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_equals_the_sum_entry_by_entry_with_gradients(num_edges, dropout):
    torch.manual_seed(0)
    ends = torch.randint(9, (2, num_edges))
    pattern, _ = Pattern.from_pairs(ends[0], ends[1], (11, 11))
    tensors = [
        torch.randn(*shape, dtype=torch.float64, requires_grad=True)
        for shape in ((11, 2), (11, 2), (11, 2, 3))
    ]
    torch.manual_seed(1)
    out = attend(*tensors, pattern, dropout=dropout)
    torch.manual_seed(1)  # the mask that dropout of [M, H] attention weights would draw
    kept = F.dropout(torch.ones(num_edges, 2, dtype=torch.float64), dropout)
    expected = by_entries(*tensors, pattern, kept)
    torch.testing.assert_close(out, expected)
    grad = torch.randn_like(out)
    torch.testing.assert_close(
        torch.autograd.grad(out, tensors, grad), torch.autograd.grad(expected, tensors, grad)
    )


def test_large_scores_neither_overflow_nor_vanish():
    pattern, _ = Pattern.from_pairs(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1]), (2, 2))
    z = torch.tensor([[[1.0]], [[2.0]]])
    to_source = torch.tensor([[1e4], [-1e4]])
    to_target = torch.tensor([[0.0], [-1e6]])
    torch.testing.assert_close(attend(to_source, to_target, z, pattern).flatten(), torch.ones(2))


def test_half_precision_is_raised_inside_and_returned():
    pattern, _ = Pattern.from_pairs(torch.tensor([0, 0]), torch.tensor([0, 1]), (2, 2))
    z = torch.ones(2, 1, 3, dtype=torch.bfloat16, requires_grad=True)
    out = attend(torch.zeros(2, 1).bfloat16(), torch.zeros(2, 1).bfloat16(), z, pattern)
    out.sum().backward()
    assert out.dtype == z.grad.dtype == torch.bfloat16
    torch.testing.assert_close(out[:, 0, 0], torch.tensor([1.0, 0.0]).bfloat16())
