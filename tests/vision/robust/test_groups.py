import itertools

import pytest
import torch

from moeapps.errors import ArgumentError
from moeapps.vision.robust.groups import confusion_groups, crossing


@pytest.mark.parametrize("seed", range(3))
def test_no_other_split_in_halves_is_crossed_less(seed):
    confusion = torch.rand(8, 8, generator=torch.Generator().manual_seed(seed)).double()
    found = confusion_groups(confusion, 2)
    assert found.bincount().tolist() == [4, 4]
    confusion.fill_diagonal_(0)
    least = min(
        crossing(confusion, torch.tensor([int(i in half) for i in range(8)]))
        for half in itertools.combinations(range(8), 4)
    )
    assert crossing(confusion, found) == pytest.approx(least)


def test_sizes_differ_by_at_most_one():
    sizes = confusion_groups(torch.rand(7, 7), 3).bincount()
    assert sorted(sizes.tolist()) == [2, 2, 3]


def test_bad_input():
    with pytest.raises(ArgumentError, match="Expected"):
        confusion_groups(torch.rand(3, 2), 2)
    with pytest.raises(ArgumentError, match="at least as many"):
        confusion_groups(torch.rand(2, 2), 3)
