import json

import numpy as np
import pytest
import torch

from moeapps.errors import DataIntegrityError
from moeapps.graphs.datasets import card, twitch_countries, twitch_gamer

HEADER = "views,mature,life_time,created_at,updated_at,numeric_id,dead_account,language,affiliate"
GAMERS = [
    (
        f"{100 * i},{i % 2},{i},2017-0{i + 1}-02,2018-10-1{i},{i},0,"
        f"{'EN' if i % 3 else 'DE'},{i // 4}"
    )
    for i in range(8)
]


def make_gamer(root):
    raw = root / "twitch_gamer/raw"
    raw.mkdir(parents=True)
    (raw / "large_twitch_features.csv").write_text("\n".join([HEADER, *GAMERS[::-1]]) + "\n")
    (raw / "large_twitch_edges.csv").write_text("numeric_id_1,numeric_id_2\n0,1\n1,2\n5,7\n")


def make_country(root, country="FR"):
    folder = root / "twitch" / country
    folder.mkdir(parents=True)
    rows = [f"{900 + i},1,{bool(i % 2)},5,False,{i}" for i in range(8)]
    rows.append("999,1,True,5,False,0")  # FR holds a few nodes twice
    text = "id,days,mature,views,partner,new_id\n" + "\n".join(rows) + "\n"
    (folder / f"musae_{country}_target.csv").write_text(text)
    (folder / f"musae_{country}_edges.csv").write_text("from,to\n0,1\n1,2\n5,7\n")
    features = {str(i): [i, 3169] for i in range(8)}
    (folder / f"musae_{country}_features.json").write_text(json.dumps(features))


@pytest.fixture
def gamer(tmp_path, tiny):
    make_gamer(tmp_path)
    return tiny(card("twitch-gamer"), nodes=8, edges=3, features=7), tmp_path


@pytest.fixture
def country(tmp_path, tiny):
    make_country(tmp_path)
    return tiny(card("twitch-fr"), edges=3, features=3170), tmp_path


def test_gamer_rows_are_ordered_by_id_and_standardised(gamer, check_data):
    data = twitch_gamer.read(gamer[0], root=gamer[1])
    check_data(data, 8, 7)
    assert data.y.tolist() == [0, 1] * 4
    assert torch.allclose(data.x.mean(0), torch.zeros(7), atol=1e-6)
    spread = data.x.std(0, correction=0)
    assert spread.tolist() == pytest.approx([1, 1, 1, 1, 0, 1, 1])  # no account is dead
    assert (data.x[:, 0].diff() > 0).all()  # views grow with the id
    assert data.edge_index.shape[1] == 6


def test_gamer_uses_fixed_splits_when_present(gamer):
    assert "seeded" in twitch_gamer.read(gamer[0], root=gamer[1]).split_source
    parts = {"train": np.arange(4), "valid": np.array([4, 5]), "test": np.array([6, 7])}
    np.save(
        gamer[1] / "twitch_gamer/raw/twitch-gamer-splits.npy", np.array([parts] * 5, dtype=object)
    )
    data = twitch_gamer.read(gamer[0], root=gamer[1], split=3)
    assert "fixed split 3" in data.split_source
    assert data.val_mask.nonzero().flatten().tolist() == [4, 5]


def test_gamer_with_a_gap_in_the_ids_is_refused(gamer):
    path = gamer[1] / "twitch_gamer/raw/large_twitch_features.csv"
    path.write_text("\n".join([HEADER, *GAMERS[:3], GAMERS[2]]) + "\n")
    with pytest.raises(DataIntegrityError, match="numeric_id does not count"):
        twitch_gamer.read(gamer[0], root=gamer[1])


def test_country_keeps_the_first_of_repeated_rows(country, check_data):
    data = twitch_countries.read(country[0], root=country[1])
    check_data(data, 8, 3170)
    assert data.y.tolist() == [0, 1] * 4
    assert data.x[2].nonzero().flatten().tolist() == [2, 3169]
    assert data.edge_index.shape[1] == 6


def test_bad_files_are_refused(gamer, country, check_errors):
    cut = {"large_twitch_features.csv": 0.5, "large_twitch_edges.csv": 0.9}
    check_errors(twitch_gamer.read, *gamer, cut=cut)
    cut = {"target.csv": 0.5, "edges.csv": 0.8, "features.json": 0.5}
    check_errors(twitch_countries.read, *country, cut={f"musae_FR_{k}": v for k, v in cut.items()})
