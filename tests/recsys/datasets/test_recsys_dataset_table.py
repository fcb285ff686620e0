import inspect
import re
import subprocess
import sys

import numpy as np
import pytest

from moeapps import errors
from moeapps.recsys.datamodules import RankingData
from moeapps.recsys.datasets import DATASETS, card, list_datasets, load, make_fixture
from moeapps.recsys.schema import FeatureSchema

pytest.importorskip("pyarrow", reason='needs pip install "moeapps[recsys]"')

WITH_FILES = [name for name in list_datasets() if card(name).files]


@pytest.mark.parametrize("name", list_datasets())
def test_card_names_the_metric_and_the_files(name):
    entry = card(name)
    assert entry.metric in ("auroc", "mse")
    assert bool(entry.files) != (entry.synthetic or name == "census-income-sample")


@pytest.mark.parametrize("name", list_datasets())
def test_reader_takes_a_split_where_the_set_has_several(name):
    module = DATASETS.module(name)
    parameters = inspect.signature(module.read).parameters
    assert ("split" in parameters) == bool(getattr(module, "SPLITS", ()))
    if not card(name).synthetic:
        assert {"root", "download"} <= set(parameters)


def parts(column):
    return column if isinstance(column, tuple) else (column,)


@pytest.mark.parametrize("name", WITH_FILES)
def test_fixture_is_read_split_and_encoded(name, tmp_path):
    folder = make_fixture(name, tmp_path, rows=400, seed=1)
    assert folder.is_relative_to(tmp_path)
    tables = load(name, root=tmp_path)
    assert isinstance(tables.schema, FeatureSchema)
    assert all(tables.num_rows.values())
    assert tables.split_source
    assert len({task.group for task in tables.tasks}) >= 2  # models with a hierarchy need groups
    for split in (tables.train, tables.val, tables.test):
        for task in tables.tasks:
            assert set(np.unique(split[task.column])) == {0, 1}
    again = load(name, root=tmp_path)
    for column, values in tables.test.items():
        for one, two in zip(parts(values), parts(again.test[column]), strict=True):
            assert one.tolist() == two.tolist() or np.allclose(one, two, equal_nan=True)
    data = RankingData(name, root=tmp_path, batch_size=16)
    data.setup()
    assert len(next(iter(data.train_dataloader()))["labels"]) == 16


@pytest.mark.parametrize("name", WITH_FILES)
def test_fixture_follows_its_seed(name, tmp_path):
    for seed in (0, 0, 1):
        place = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        make_fixture(name, place, rows=60, seed=seed)
    one, two, other = (
        b"".join((tmp_path / str(i) / f.path).read_bytes() for f in card(name).files)
        for i in range(3)
    )
    assert one == two != other


@pytest.mark.parametrize("name", WITH_FILES)
def test_empty_and_cut_files_are_named_with_their_page(name, tmp_path):
    make_fixture(name, tmp_path, rows=80)
    for file in card(name).files:
        path = tmp_path / file.path
        content = path.read_bytes()
        for damaged in (b"", content[:-12].rsplit(b"\n", 1)[0] + b"\n1"):
            path.write_bytes(damaged)
            if file.optional and name.startswith("kuairand") and "random" in file.name:
                continue  # not opened unless asked for
            with pytest.raises(errors.DataIntegrityError) as caught:
                load(name, root=tmp_path)
            assert file.name in str(caught.value)
            assert card(name).url in str(caught.value)
        path.write_bytes(content)
    load(name, root=tmp_path)


@pytest.mark.parametrize("name", ["kuairec", "kuairand-pure", "tenrec-qk-video", "movielens-100k"])
def test_column_that_is_missing_is_named_with_file_and_page(name, tmp_path):
    make_fixture(name, tmp_path, rows=80)
    path = tmp_path / card(name).files[0].path
    path.write_bytes(path.read_bytes().replace(b"user_id", b"user", 1))
    with pytest.raises(errors.DataIntegrityError) as caught:
        load(name, root=tmp_path)
    for text in ("'user_id", path.name, card(name).url):
        assert text in str(caught.value)


def test_value_of_another_type_is_named_with_line_and_column(tmp_path):
    make_fixture("tenrec-qk-video", tmp_path, rows=80)
    path = tmp_path / card("tenrec-qk-video").files[0].path
    lines = path.read_text().splitlines()
    lines[40] = "u" + lines[40]
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(
        errors.DataIntegrityError, match=re.escape("QK-video.csv, line 41, column 'user_id'")
    ):
        load("tenrec-qk-video", root=tmp_path)


def test_names_are_forgiving():
    assert card("Census_Income").name == "census-income"


def test_unknown_argument_and_split_are_named():
    with pytest.raises(errors.ArgumentError, match=r"short-video does not take colour"):
        load("short-video", colour=1)
    with pytest.raises(errors.ArgumentError, match="Choose income-marital or college-marital"):
        load("census-income", split="age")
    with pytest.raises(errors.ArgumentError, match="It has one"):
        load("short-video", split="time")


def test_fixtures_of_made_sets_and_tiny_ones_are_refused(tmp_path):
    with pytest.raises(errors.ArgumentError, match="no files of its own"):
        make_fixture("short-video", tmp_path)
    with pytest.raises(errors.ArgumentError, match="rows=3 is too small"):
        make_fixture("tiktok", tmp_path, rows=3)


def test_missing_package_names_the_extra(monkeypatch, tmp_path):
    make_fixture("tiktok", tmp_path)
    for module in [m for m in sys.modules if m.split(".")[0] == "pyarrow"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.delitem(sys.modules, "moeapps.recsys.files", raising=False)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(errors.MissingExtraError, match=r"pyarrow.*moeapps\[recsys\]"):
        load("tiktok", root=tmp_path)


def test_listing_needs_neither_torch_nor_pyarrow():
    code = (
        "import sys\n"
        "from moeapps.recsys.datasets import card, list_datasets\n"
        "assert all(card(name).title for name in list_datasets())\n"
        "assert not {'torch', 'pyarrow', 'lightning', 'pandas'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
