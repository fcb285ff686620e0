import numpy as np
import pytest

from moeapps.errors import ArgumentError
from moeapps.graphs.datasets.splits import index_masks, random_masks, split_number


@pytest.mark.parametrize(("given", "number"), [(None, 0), (3, 3), ("3", 3), (0, 0)])
def test_splits_are_numbers_or_digits(given, number):
    assert split_number(given, count=5) == number


@pytest.mark.parametrize("given", [5, -1, "public", "-1", True, 1.0])
def test_other_splits_are_refused(given):
    with pytest.raises(ArgumentError, match=r"Choose 0\.\.4"):
        split_number(given, count=5)


def test_random_masks_cover_the_labelled_nodes_once():
    y = np.where(np.arange(1000) % 5 == 0, -1, 0)
    masks = np.stack(random_masks(y, 7, train=0.48, val=0.32))
    assert masks.sum(1).tolist() == [384, 256, 160]
    np.testing.assert_array_equal(masks.sum(0), y >= 0)


@pytest.mark.parametrize("node", [3, -1])
def test_numbers_that_are_no_node_are_refused(node):
    with pytest.raises(ValueError, match="of 3"):
        index_masks({"train": [0], "valid": [1], "test": [node]}, 3)
