import dataclasses
import gzip
import re

import numpy as np
import pytest

from moeapps import streams
from moeapps.errors import (
    ArgumentError,
    DataIntegrityError,
    DataNotFoundError,
    MissingExtraError,
    UnknownNameError,
)
from moeapps.streams.datasets import arff_sets, covertype, csv_sets, insects
from moeapps.streams.datasets.arff import read_arff

AIRLINES = """% a comment
@relation airlines
@attribute Airline {CO,US,'A A'}
@attribute Flight numeric
@attribute AirportFrom {SFO,PHX}
@ATTRIBUTE AirportTo {IAH,CLT}
@attribute DayOfWeek {1,2,3}
@attribute 'Time' numeric
@attribute Length real
@attribute Delay {0,1}
@data
CO,269,SFO,IAH,3,15,205,1
US,1558.0,PHX,CLT,3,15,222,1

'A A',?,SFO,?,1,20,165,0
"""
GMSC = """@relation credit
@attribute age numeric
@attribute MonthlyIncome numeric
@attribute class {0,1}
@data
74,3500,0
57,?,1
"""
ELEC = "period,price,class\n0.0,0.05,1\n0.02,0.04,1\n0.04,0.03,0\n"
ELEC_8 = "date,day,period,class\n0.0,2,0.0,UP\n0.0,2,0.02,DOWN\n0.1,3,0.0,UP\n"
WEATHER = "feat_1,target\n19.8,0\n26.8,1\n16.5,0\n"
INSECTS = "".join(f"{i},{i + 0.5},kind {'fcbead'[i]}\n" for i in range(6))
COVERTYPE = "\n".join(",".join([str(i)] * 10 + ["0", "1"] * 22 + [str(i)]) for i in range(1, 8))

FAKE = {
    "airlines": (arff_sets, AIRLINES, {"instances": 3, "features": 7}),
    "gmsc": (arff_sets, GMSC, {"instances": 2, "features": 2}),
    "electricity": (csv_sets, ELEC, {"instances": 3, "features": 2}),
    "electricity_8": (csv_sets, ELEC_8, {"instances": 3, "features": 3}),
    "weather": (csv_sets, WEATHER, {"instances": 3, "features": 1}),
    "insects_abrupt_balanced": (insects, INSECTS, {"instances": 6, "features": 2}),
    "covertype": (covertype, COVERTYPE, {"instances": 7, "features": 54}),
}


def make(name, root):
    """A tiny copy of a set's file, and the card as it would be for it."""
    module, text, sizes = FAKE[name]
    card = streams.card(name)
    files = tuple(dataclasses.replace(file, sha256=None, size=None) for file in card.files)
    path = root / files[0].path
    path.parent.mkdir(parents=True)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return module.load, dataclasses.replace(card, files=files, sizes=sizes), path


@pytest.mark.parametrize("name", list(FAKE))
def test_missing_cut_and_exchanged_files_are_refused(name, tmp_path):
    load, card, path = make(name, tmp_path)
    content = path.read_bytes()
    whole = load(card, root=tmp_path)
    assert (len(whole), len(whole.feature_names)) == tuple(card.sizes.values())
    assert len(load(card, root=tmp_path, limit=2)) == 2

    path.write_bytes(content[: int(0.6 * len(content))])
    with pytest.raises(DataIntegrityError, match=r"etch it again"):
        load(card, root=tmp_path)
    path.write_bytes(content)
    (file,) = card.files
    wrong = dataclasses.replace(card, files=(dataclasses.replace(file, sha256="0" * 64),))
    with pytest.raises(DataIntegrityError, match="SHA-256"):
        load(wrong, root=tmp_path)
    path.unlink()
    with pytest.raises(DataNotFoundError, match=re.escape(file.path)) as caught:
        load(card, root=tmp_path)
    assert card.url in str(caught.value)


@pytest.mark.parametrize("name", list(FAKE))
def test_every_set_can_be_fetched_and_has_no_address_without_a_scheme(name):
    card = streams.card(name)
    assert card.downloadable
    urls = [url for part in (*card.files, *card.archives) for url in part.urls]
    assert all(url.startswith("https://") for url in urls)


def test_airlines_nominal_columns_are_codes_and_missing_values_have_no_key(tmp_path):
    load, card, _ = make("airlines", tmp_path)
    stream = load(card, root=tmp_path)
    assert stream.nominal == (0, 2, 3, 4)
    assert stream.values[0] == ("CO", "US", "A A")
    assert stream.X[:, 0].tolist() == [0, 1, 2]
    assert stream.y.tolist() == [1, 1, 0]
    x, label = list(stream)[2]
    assert x == {
        "Airline": "A A",
        "AirportFrom": "SFO",
        "DayOfWeek": "1",
        "Time": 20,
        "Length": 165,
    }
    assert label == "0"
    assert np.isnan(stream.X[2, [1, 3]]).all()


def test_a_value_that_the_header_does_not_declare_is_refused(tmp_path):
    load, card, path = make("airlines", tmp_path)
    path.write_text(AIRLINES.replace("CO,269", "XX,269"))
    with pytest.raises(DataIntegrityError, match="unknown values in the column Airline"):
        load(card, root=tmp_path)
    path.write_text(AIRLINES.replace("205,1", "205,2"))
    with pytest.raises(DataIntegrityError, match="labels other than its 2 classes"):
        load(card, root=tmp_path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("@relation r\n1,2\n", "no @data"),
        ("@attribute name string\n@data\na\n", "of type string"),
        ("@attribute name\n@data\na\n", "declares no attribute"),
        ("@attribute a numeric\n@data\n{0 1}\n", "could not convert"),
    ],
)
def test_other_arff_files_are_refused(tmp_path, text, reason):
    path = tmp_path / "a.arff"
    path.write_text(text)
    with pytest.raises(DataIntegrityError, match=reason):
        read_arff(path)


def test_electricity_labels_are_directions(tmp_path):
    load, card, _ = make("electricity", tmp_path)
    stream = load(card, root=tmp_path)
    assert [label for _, label in stream] == ["UP", "UP", "DOWN"]
    load, card, _ = make("electricity_8", tmp_path / "8")
    stream = load(card, root=tmp_path / "8")
    assert [label for _, label in stream] == ["UP", "DOWN", "UP"]
    assert [x["day"] for x, _ in stream] == ["2", "2", "3"]


def test_covertype_classes_count_from_one(tmp_path):
    load, card, _ = make("covertype", tmp_path)
    stream = load(card, root=tmp_path)
    assert stream.class_names == tuple(range(1, 8))
    assert len(stream.nominal) == 44
    assert [label for _, label in stream] == list(range(1, 8))


def test_insects_know_their_changes(tmp_path):
    load, card, _ = make("insects_abrupt_balanced", tmp_path)
    stream = load(card, root=tmp_path)
    assert stream.drifts == ()  # all of them lie beyond six instances
    assert stream.class_names == tuple(f"kind {c}" for c in "abcdef")
    assert stream.y.tolist() == [5, 2, 1, 4, 0, 3]


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("bananas", [2_924, 2_376]),
        ("image_segments", [330] * 7),
        ("phishing", [702, 548]),
        ("shuttle", [45_586, 3_511]),
    ],
)
def test_river_brings_its_sets(name, counts):
    stream = streams.load(name)
    assert np.bincount(stream.y).tolist() == counts
    assert np.isfinite(stream.X).all()


@pytest.mark.data
def test_electricity_and_weather_are_the_published_files(real_data):
    elec = streams.load("electricity", root=real_data)
    assert elec.X.shape == (45_312, 6)
    assert np.bincount(elec.y).tolist() == [26_075, 19_237]
    assert np.mean(elec.y[1:] == elec.y[:-1]) == pytest.approx(0.853, abs=0.001)
    weather = streams.load("weather", root=real_data)
    assert weather.X.shape == (18_159, 8)
    assert np.bincount(weather.y).tolist() == [12_461, 5_698]


def own(tmp_path, text):
    path = tmp_path / "mine.csv"
    path.write_text(text)
    return path


def test_own_file_with_mixed_columns(tmp_path):
    path = own(tmp_path, "price,city,open,bought\n1.5,Rome,True,no\n,Oslo,False,yes\n3,,True,no\n")
    stream = streams.load_csv(path, "bought")
    assert stream.nominal == (1, 2)
    assert stream.values == {1: ("Rome", "Oslo"), 2: ("True", "False")}
    assert stream.class_names == ("no", "yes")
    assert list(stream) == [
        ({"price": 1.5, "city": "Rome", "open": "True"}, "no"),
        ({"city": "Oslo", "open": "False"}, "yes"),
        ({"price": 3.0, "open": "True"}, "no"),
    ]
    assert len(streams.load_csv(path, "bought", limit=2)) == 2
    assert stream.name == "mine"


def test_decimals_are_the_nearest_numbers(tmp_path):
    numbers = np.random.default_rng(0).random(2000).tolist()
    path = own(
        tmp_path, "a,y\n" + "".join(f"{number!r},{i % 2}\n" for i, number in enumerate(numbers))
    )
    assert streams.load_csv(path, "y").X[:, 0].tolist() == numbers


def test_bad_own_files_are_refused(tmp_path):
    with pytest.raises(DataNotFoundError, match="does not exist"):
        streams.load_csv(tmp_path / "none.csv", "y")
    path = own(tmp_path, "a,label\n1,0\n2,\n")
    with pytest.raises(ArgumentError, match="limit=-1 is negative"):
        streams.load_csv(path, "label", limit=-1)
    with pytest.raises(UnknownNameError, match="'label'"):
        streams.load_csv(path, "labels")
    with pytest.raises(ArgumentError, match="1 rows without a label"):
        streams.load_csv(path, "label")
    with pytest.raises(ArgumentError, match="0 rows"):
        streams.load_csv(own(tmp_path, "a,label\n"), "label")
    with pytest.raises(DataIntegrityError, match="cannot be read"):
        streams.load_csv(own(tmp_path, ""), "label")
    many = "id,label\n" + "".join(f"row{i},{i % 2}\n" for i in range(1_001))
    with pytest.raises(ArgumentError, match="1001 different texts"):
        streams.load_csv(own(tmp_path, many), "label")


def test_a_missing_package_is_named(monkeypatch):
    import builtins

    real = builtins.__import__

    def without_river(name, *args, **kwargs):
        if name.split(".")[0] == "river":
            raise ModuleNotFoundError("no river", name="river")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_river)
    with pytest.raises(MissingExtraError, match=r"moeapps\[streams\]"):
        streams.load("phishing")
