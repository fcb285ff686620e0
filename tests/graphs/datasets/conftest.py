"""Shared by the tests of readers: cards for tiny copies, and the errors every reader must give."""

import dataclasses
import re

import pytest
import torch

from moeapps.errors import DataIntegrityError, DataNotFoundError


def _tiny(card, **sizes):
    """The card as it would be for a tiny copy: no checksums, other sizes."""
    files = tuple(dataclasses.replace(f, sha256=None, size=None) for f in card.files)
    classes = sizes.pop("classes", card.classes)
    return dataclasses.replace(card, files=files, sizes=sizes, classes=classes)


def _check_errors(read, card, root, *, cut):
    """Missing, truncated and exchanged files, one after the other."""
    needed = [file for file in card.files if not file.optional]
    for file in needed:
        path = root / file.path
        content = path.read_bytes()

        path.unlink()
        with pytest.raises(DataNotFoundError, match=re.escape(file.path)) as caught:
            read(card, root=root)
        assert card.url in str(caught.value)

        if file.name in cut:
            path.write_bytes(content[: int(len(content) * cut[file.name])])
            with pytest.raises(DataIntegrityError, match=r"etch (it|them) again"):
                read(card, root=root)

        path.write_bytes(content)
        sums = [dataclasses.replace(f, sha256="0" * 64) if f is file else f for f in card.files]
        wrong = dataclasses.replace(card, files=tuple(sums))
        with pytest.raises(DataIntegrityError, match=f"{re.escape(file.name)} has SHA-256"):
            read(wrong, root=root)
    assert set(cut) == {file.name for file in needed}
    read(card, root=root)  # everything is back in place


def _check_data(data, nodes, features):
    assert data.x.shape == (nodes, features)
    assert data.x.dtype == torch.float32
    assert data.y.shape == (nodes,)
    assert data.y.dtype == torch.int64
    assert data.edge_index.dtype == torch.int64
    pairs = data.edge_index[0] * nodes + data.edge_index[1]
    assert len(pairs) == len(pairs.unique())
    masks = torch.stack([data.train_mask, data.val_mask, data.test_mask])
    assert masks.dtype == torch.bool
    assert masks.sum(0).max() == 1
    assert not (masks.any(0) & (data.y < 0)).any()
    assert isinstance(data.split_source, str)
    assert isinstance(data.edge_source, str)


@pytest.fixture
def tiny():
    return _tiny


@pytest.fixture
def check_errors():
    return _check_errors


@pytest.fixture
def check_data():
    return _check_data
