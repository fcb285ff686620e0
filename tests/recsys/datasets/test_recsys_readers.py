"""Each protocol's own rules, on files small enough to count by hand."""

import numpy as np
import pytest

from moeapps.errors import ArgumentError, DataIntegrityError
from moeapps.recsys.datasets import card, load, make_fixture
from moeapps.recsys.datasets.ali_ccp import parse_features
from moeapps.recsys.datasets.census_income import CATEGORICAL, COLUMNS, DENSE, PAIRS
from moeapps.recsys.encoders import Encoder
from moeapps.recsys.vocabularies import MISSING

pytest.importorskip("pyarrow", reason='needs pip install "moeapps[recsys]"')


def edit(root, name, index, change):
    path = root / card(name).files[index].path
    path.write_bytes(change(path.read_bytes()))


# --------------------------------------------------------------------------------- Census-Income


def test_census_has_42_columns_of_which_33_are_categorical():
    assert len(COLUMNS) == 42
    assert len(CATEGORICAL) == 33
    assert len(DENSE) == 7


@pytest.mark.parametrize("split", PAIRS)
def test_census_labels_are_no_features_and_the_weight_is_none(split):
    tables = load("census-income-sample", split=split)
    names = {f.name for f in tables.schema.features}
    assert len(names) == 39
    assert "instance weight" not in names | set(tables.train)
    assert "marital status" not in names
    assert ("income" in names) == (split == "college-marital")
    assert ("education" in names) == (split == "income-marital")


def test_census_sample_keeps_the_rates_of_the_whole_set():
    tables = load("census-income-sample")
    assert tables.num_rows == {"train": 19952, "val": 4987, "test": 4989}
    for split in (tables.train, tables.val, tables.test):
        assert split["income"].mean() == pytest.approx(0.062, abs=0.0005)
        assert split["marital"].mean() == pytest.approx(0.433, abs=0.015)
    college = load("census-income-sample", split="college-marital")
    assert college.train["college"].mean() == pytest.approx(0.336, abs=0.01)


def test_census_halves_follow_the_seed_and_are_stratified():
    one, two = (load("census-income-sample", seed=seed) for seed in (0, 1))
    assert one.val["age"].tolist() != two.val["age"].tolist()
    assert one.val["income"].sum() == two.val["income"].sum()
    assert np.array_equal(one.train["age"], two.train["age"])


def test_census_file_with_foreign_labels_is_refused(tmp_path):
    make_fixture("census-income", tmp_path)
    edit(tmp_path, "census-income", 1, lambda c: c.replace(b"50000+.", b"60000+.", 1))
    with pytest.raises(DataIntegrityError, match=r"census-income.test, line \d+, column 'income'"):
        load("census-income", root=tmp_path)


@pytest.mark.data
def test_census_published_files(real_set):
    tables = load("census-income", root=real_set(card("census-income")))
    assert tables.num_rows == {"train": 199_523, "val": 49_881, "test": 49_881}
    assert tables.train["income"].sum() == 12_382
    encoder = Encoder.fit(tables.train, tables.schema)
    assert encoder.schema.flat_width == 32 * 4 + 7
    sample = load("census-income-sample")
    for name in ("age", "detailed household summary", "occupation code"):
        assert set(sample.train[name]) <= set(tables.train[name])
    for name, kept in encoder.vocabularies.items():  # one row in ten sees most values
        assert len(Encoder.fit(sample.train, sample.schema).vocabularies[name]) >= 0.8 * len(kept)


# ---------------------------------------------------------------------------------------- Ali-CCP


def test_feature_strings_become_ids_bags_and_strengths(tmp_path):
    def text(*entries):
        return "\x01".join(f"{field}\x02{i}\x03{v}" for field, i, v in entries)

    texts = np.array(
        [
            text(("205", 7, 1.0), ("210", 1, 1.0), ("210", 2, 1.0), ("508", 9, 0.5)),
            text(("210", 3, 1.0), ("508", 8, 0.25), ("508", 6, 2.0)),
            text(("853", 5, 1.5)),
        ],
        dtype=object,
    )
    columns = parse_features(tmp_path, texts, ("205", "210", "508"))
    assert columns["205"].tolist() == [7, MISSING, MISSING]
    assert columns["508"].tolist() == [9, 6, MISSING]  # the last entry counts
    assert columns["D508"].tolist() == [0.5, 2.25, 0]
    values, offsets = columns["210"]
    assert (values.tolist(), offsets.tolist()) == ([1, 2, 3], [0, 2, 3])
    with pytest.raises(DataIntegrityError, match="'205'"):
        parse_features(tmp_path, np.array(["205"], dtype=object), ("205",))


def test_ali_ccp_drops_purchases_without_a_click(tmp_path):
    make_fixture("ali-ccp", tmp_path, rows=400)
    tables = load("ali-ccp", root=tmp_path)
    assert sum(tables.num_rows.values()) == 400 * 4 // 5 + 200 * 4 // 5
    for split in (tables.train, tables.val, tables.test):
        assert not ((split["purchase"] == 1) & (split["click"] == 0)).any()
    assert tables.min_count == 10


def test_ali_ccp_fields_and_splits(tmp_path):
    make_fixture("ali-ccp", tmp_path, rows=400)
    aitm = load("ali-ccp", root=tmp_path, fields="aitm")
    assert len(aitm.schema.categorical) == len(aitm.schema.features) == 18
    every = load("ali-ccp", root=tmp_path, split="half-of-test")
    assert len(every.schema.categorical) + len(every.schema.bags) == 23
    assert len(every.schema.dense) == 8
    assert every.num_rows == {"train": 320, "val": 80, "test": 80}
    assert load("ali-ccp", root=tmp_path, limit=50).num_rows == {"train": 45, "val": 5, "test": 50}
    with pytest.raises(ArgumentError, match="Choose all or aitm"):
        load("ali-ccp", root=tmp_path, fields="aitn")


def test_ali_ccp_user_without_features_is_named(tmp_path):
    make_fixture("ali-ccp", tmp_path)
    edit(tmp_path, "ali-ccp", 1, lambda c: c.split(b"\n", 1)[1])
    with pytest.raises(DataIntegrityError, match=r"common_features_train.csv has no row 'train0"):
        load("ali-ccp", root=tmp_path)


# ------------------------------------------------------------------------------------- AliExpress


def test_aliexpress_joins_on_the_search_and_drops_the_rest(tmp_path):
    make_fixture("aliexpress-nl", tmp_path)
    tables = load("aliexpress-nl", root=tmp_path)
    lines = (tmp_path / "aliexpress/NL_item_test.csv").read_text().splitlines()
    users = {
        line.split(",")[0]: line.split(",")
        for line in (tmp_path / "aliexpress/NL_user_test.csv").read_text().splitlines()
    }
    items = [line.split(",") for line in lines if line.split(",")[0] in users]
    assert len(items) < len(lines)
    assert tables.num_rows["test"] == len(items)
    assert tables.test["ctr"].tolist() == [float(item[48] != "0") for item in items]
    assert tables.test["ctcvr"].tolist() == [float(item[48] == "2") for item in items]
    assert tables.test["categorical_1"].tolist() == [users[item[0]][1] for item in items]
    assert tables.test["categorical_10"].tolist() == [item[18] for item in items]
    assert tables.test["numerical_1"].tolist() == [float(users[item[0]][8]) for item in items]
    assert tables.test["numerical_63"].tolist() == [float(item[47]) for item in items]
    assert len(tables.schema.categorical) == 16
    assert len(tables.schema.dense) == 63
    assert not set(tables.train["search_id"]) & set(tables.val["search_id"])


def test_aliexpress_label_and_repeated_search_are_checked(tmp_path):
    make_fixture("aliexpress-us", tmp_path)
    path = tmp_path / "aliexpress/US_user_train.csv"
    content = path.read_text()
    path.write_text(content + content.splitlines()[0] + "\n")
    with pytest.raises(DataIntegrityError, match=r"US_user_train.csv names a search twice"):
        load("aliexpress-us", root=tmp_path)
    path.write_text(content)
    path = tmp_path / "aliexpress/US_item_train.csv"
    path.write_text(path.read_text().rstrip()[:-1] + "7\n")
    with pytest.raises(DataIntegrityError, match=r"US_item_train.csv, line 400, column 49: 7"):
        load("aliexpress-us", root=tmp_path)


# --------------------------------------------------------------------------- KuaiRand and KuaiRec


def test_kuairand_splits_by_date(tmp_path):
    make_fixture("kuairand-pure", tmp_path)
    tables = load("kuairand-pure", root=tmp_path)
    assert set(tables.test["date"]) == {20220429}
    assert set(tables.val["date"]) == {20220428}
    assert max(tables.train["date"]) == 20220427
    assert sum(tables.num_rows.values()) == 800
    assert set(tables.train["hour"]) <= set(range(24))
    assert tables.schema.group_key == "user_id"


def test_kuairand_options(tmp_path):
    make_fixture("kuairand-pure", tmp_path)
    more = load("kuairand-pure", root=tmp_path, random_log=True, hate=True, statistics=False)
    assert sum(more.num_rows.values()) == 1200
    assert more.tasks[-1].name == "is_hate"
    assert "play_cnt" not in {f.name for f in more.schema.features}
    assert {task.group for task in more.tasks} == {"watch", "interaction"}


def test_kuairand_video_without_features_is_missing_and_tags_are_lists(tmp_path):
    make_fixture("kuairand-1k", tmp_path)
    tables = load("kuairand-1k", root=tmp_path)
    unknown = tables.train["video_id"] >= 60
    assert unknown.any()
    assert (tables.train["author_id"][unknown] == MISSING).all()
    assert np.isnan(tables.train["play_cnt"][unknown]).all()
    assert set(tables.train["tag"][0]) == {1, 8, 12, 28, 65}
    assert Encoder.fit(tables.train, tables.schema).schema["tag"].vocab_size == 6


def test_kuairec_labels_follow_their_thresholds(tmp_path):
    make_fixture("kuairec", tmp_path)
    path = tmp_path / "kuairec/data/small_matrix.csv"
    header = path.read_text().splitlines()[0]
    rows = [
        "1,1,6999,30000,,,,0.23",
        "1,1,7000,30000,,,,0.23",
        "1,1,18000,30000,,,,0.6",
        "1,1,5000,5000,,,,1.0",
        "1,1,60000,30000,,,,2.0",
    ]
    path.write_text("\n".join([header, *rows]) + "\n")
    test = load("kuairec", root=tmp_path).test
    found = np.stack(
        [test[name] for name in ("effective_view", "long_view", "complete", "rewatch")]
    )
    expected = [[0, 1, 1, 1, 1], [0, 0, 1, 1, 1], [0, 0, 0, 1, 1], [0, 0, 0, 0, 1]]
    assert found.tolist() == expected


# ------------------------------------------------------------------ Tenrec, TikTok and MovieLens


def test_tenrec_history_shares_the_items_table(tmp_path):
    make_fixture("tenrec-ctr-1m", tmp_path)
    tables = load("tenrec-ctr-1m", root=tmp_path)
    values, offsets = tables.train["history"]
    assert 0 not in values
    assert len(offsets) == tables.num_rows["train"] == 320
    schema = Encoder.fit(tables.train, tables.schema).schema
    assert schema["history"].vocab_size == schema["item_id"].vocab_size
    assert "watching_times" not in {f.name for f in schema.features}


def test_tiktok_split_is_ten_percent_and_ten_of_the_rest(tmp_path):
    make_fixture("tiktok", tmp_path, rows=1000)
    tables = load("tiktok", root=tmp_path)
    assert tables.num_rows == {"train": 810, "val": 90, "test": 100}
    assert tables.min_count == 10
    assert tables.schema.group_key == "uid"


@pytest.mark.parametrize("name", ["movielens-1m", "movielens-100k"])
def test_movielens_splits(tmp_path, name):
    make_fixture(name, tmp_path)
    by_time = load(name, root=tmp_path)
    assert by_time.num_rows == {"train": 320, "val": 40, "test": 40}
    last = load(name, root=tmp_path, split="leave-last", rating=True)
    assert last.num_rows == {"train": 340, "val": 30, "test": 30}
    assert sorted(last.test["user_id"]) == sorted(last.val["user_id"]) == list(range(1, 31))
    assert [task.type for task in last.tasks] == ["binary", "binary", "regression"]
    assert np.array_equal(last.test["loved"], last.test["rating"] == 5)
    assert np.array_equal(last.test["liked"], last.test["rating"] >= 4)
    assert {"Action", "Sci-Fi", "Comedy"} <= set(last.train["genres"][0])


def test_movielens_orders_by_time(tmp_path):
    make_fixture("movielens-1m", tmp_path)
    path = tmp_path / "ml-1m/ratings.dat"
    rows = [line.split("::") for line in path.read_text("latin-1").splitlines()]
    rows.sort(key=lambda row: int(row[3]))
    tables = load("movielens-1m", root=tmp_path)
    assert tables.test["rating"].tolist() == [float(row[2]) for row in rows[-40:]]


# ------------------------------------------------------------------------------------------ Adult


def test_adult_reads_the_test_file_with_its_odd_line_and_dots(tmp_path):
    make_fixture("adult", tmp_path)
    tables = load("adult", root=tmp_path)
    assert tables.num_rows == {"train": 400, "val": 100, "test": 100}
    assert tables.test["income"].mean() == 0.5
    names = {f.name for f in tables.schema.features}
    assert not {"fnlwgt", "marital-status", "income"} & names
    assert len(names) == 12
