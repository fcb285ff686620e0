"""Accuracy in closed form, ROC-AUC, local homophily."""

import pytest
import torch

from moeapps.errors import ArgumentError
from moeapps.graphs.metrics import accuracy, auroc, expected_accuracy, local_homophily


def test_accuracy_counts():
    logits = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 1.0]])
    assert accuracy(logits, torch.tensor([0, 0, 0])).item() == pytest.approx(2 / 3)


@pytest.mark.parametrize("c", [0.0, 1.0])
def test_expected_accuracy_at_the_ends_is_one_expert(c):
    g = torch.Generator().manual_seed(0)
    weak, strong = torch.randn(50, 4, generator=g), torch.randn(50, 4, generator=g)
    y = torch.randint(4, (50,), generator=g)
    alone = weak if c else strong
    got = expected_accuracy(weak, strong, torch.full((50,), c), y)
    assert got.item() == pytest.approx(accuracy(alone, y).item())


def test_expected_accuracy_is_exact_in_float64():
    weak = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    strong = weak.flip(-1)
    c = torch.tensor([0.3, 0.9], dtype=torch.float64)
    assert expected_accuracy(weak, strong, c, torch.tensor([0, 0])).item() == pytest.approx(0.2)


def test_auroc_is_the_share_of_pairs_in_the_right_order():
    g = torch.Generator().manual_seed(1)
    logits, y = torch.randn(200, 2, generator=g), torch.randint(2, (200,), generator=g)
    logits[::3] = 0.0  # ties count half
    score = logits[:, 1] - logits[:, 0]
    gap = score[y == 1][:, None] - score[y == 0][None, :]
    expected = (gap > 0).float().mean() + (gap == 0).float().mean() / 2
    assert auroc(logits, y).item() == pytest.approx(expected.item(), abs=1e-6)


def test_auroc_tells_very_certain_nodes_apart():
    logits = torch.tensor([[0.0, 25.0], [0.0, 26.0]])
    assert auroc(logits, torch.tensor([0, 1])).item() == 1.0


def test_auroc_refuses_three_classes():
    with pytest.raises(ArgumentError, match="two classes"):
        auroc(torch.zeros(2, 3), torch.tensor([0, 1]))


def test_local_homophily_ignores_loops_and_unlabelled():
    edge_index = torch.tensor([[0, 1, 2, 3, 0], [1, 0, 0, 0, 0]])
    y = torch.tensor([1, 1, 0, -1])
    got = local_homophily(edge_index, y)
    assert got[:2].tolist() == [0.5, 1.0]
    assert got[2:].isnan().all()


def test_local_homophily_without_edges_is_undefined():
    empty = torch.zeros(2, 0, dtype=torch.long)
    assert local_homophily(empty, torch.tensor([0, 1])).isnan().all()
