"""What holds for every set: its card, its reader's protocol, its made-up files, broken ones."""

import subprocess
import sys

import numpy as np
import pytest

from moeapps import errors
from moeapps.vision.datasets import DATASETS, card, list_datasets, load, make_fixture

pytest.importorskip("sklearn", reason='needs pip install "moeapps[vision]"')
pytest.importorskip("PIL", reason='needs pip install "moeapps[vision]"')

WITH_FILES = [name for name in list_datasets() if card(name).files]
# Sets of other tasks have tests of their own for what they hold.
LABELLED = [name for name in WITH_FILES if card(name).classes]
LISTS = ("imagenet-lt", "places-lt", "inaturalist-2018")
ATTRIBUTES = ("awa2", "cub", "sun", "flo")


def arguments(name):
    if name in LISTS:
        return {"whole": False}
    return {} if name in ATTRIBUTES else {"imbalance": 2}


def test_all_sets_of_the_literature_are_there():
    assert {"cifar10-lt", "cifar100-lt", "mnist-lt", "digits-lt", "pair-digits-lt"} < set(DATASETS)
    assert {*LISTS, *ATTRIBUTES} < set(DATASETS)


@pytest.mark.parametrize("name", list_datasets())
def test_card_names_the_metric_and_the_files(name):
    entry = card(name)
    assert entry.metric == "accuracy" or not entry.classes
    assert bool(entry.files) != (entry.synthetic or name in ("digits-lt", "bundled-photos"))


@pytest.mark.parametrize("name", [n for n in LABELLED if n not in ATTRIBUTES])
def test_fixture_is_read(name, tmp_path):
    folder = make_fixture(name, tmp_path, images=60, seed=1)
    assert folder.is_relative_to(tmp_path)
    splits = load(name, root=tmp_path, **arguments(name))
    assert splits.split_source
    assert all(splits.num_rows.values())
    for part in (splits.train, splits.test):
        assert part.class_names == splits.class_names
        assert part.class_counts.sum() == len(part)
        image, label = part[0]
        assert image.dtype.is_floating_point is False
        assert image.shape[0] in (1, 3)
        assert label == part.labels[0]
    assert splits.train.class_counts.min() >= 1
    again = load(name, root=tmp_path, **arguments(name))
    assert np.array_equal(again.train.labels, splits.train.labels)
    assert np.array_equal(again.train.images[0], splits.train.images[0])


@pytest.mark.parametrize("name", LABELLED)
def test_broken_files_are_named_with_their_page(name, tmp_path):
    make_fixture(name, tmp_path, images=40)
    for file in card(name).files:
        path = file.find(tmp_path)
        content = path.read_bytes()
        for broken in (b"", content[: len(content) // 2 + 1]):
            path.write_bytes(broken)
            if name in LISTS and broken:
                continue  # a list may end anywhere: its length is checked when it is read whole
            with pytest.raises(errors.DataIntegrityError) as caught:
                load(name, root=tmp_path, **arguments(name))
            assert path.name in str(caught.value)
            assert card(name).url in str(caught.value)
        path.write_bytes(content)
    load(name, root=tmp_path, **arguments(name))


def test_unknown_argument_is_named():
    with pytest.raises(errors.ArgumentError, match="digits-lt does not take colour"):
        load("digits-lt", colour=1)


def test_fixtures_of_made_sets_and_tiny_ones_are_refused(tmp_path):
    with pytest.raises(errors.ArgumentError, match="no files of its own"):
        make_fixture("pair-digits-lt", tmp_path)
    with pytest.raises(errors.ArgumentError, match="images=3 is too small"):
        make_fixture("cub", tmp_path, images=3)


def test_missing_package_names_the_extra(monkeypatch, tmp_path):
    make_fixture("cub", tmp_path)
    for module in [m for m in sys.modules if m.split(".")[0] == "scipy"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "scipy", None)
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(errors.MissingExtraError, match=r"moeapps\[vision\]"):
        load("cub", root=tmp_path)


def test_listing_needs_no_torch():
    code = (
        "import sys\n"
        "from moeapps.vision.datasets import card, list_datasets\n"
        "assert all(card(name).title for name in list_datasets())\n"
        "assert not {'torch', 'torchvision', 'sklearn', 'PIL', 'scipy'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
