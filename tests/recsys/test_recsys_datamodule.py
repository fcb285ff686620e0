import importlib
import warnings

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from moeapps.errors import ArgumentError, ConfigError, DataNotFoundError, UnknownNameError
from moeapps.recsys import datasets
from moeapps.recsys.datamodules import RankingData, RankingFiles
from moeapps.recsys.datasets.tables import Tables
from moeapps.recsys.schema import Categorical, Dense, FeatureSchema, MultiHot, Task

SMALL = {"rows": 2000, "val_rows": 500, "test_rows": 700}


def short_video(**arguments):
    data = RankingData("short-video", dataset_args=SMALL, **arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # rare tasks may have no positive in so few rows
        data.setup()
    return data


def own(train, **arguments):
    schema = FeatureSchema([Categorical("item", 1, 4)])
    tables = Tables(schema, (Task("click"),), train, train, train, "own")
    return RankingData.from_tables(tables, **{"batch_size": 2, **arguments})


def test_setup_gives_schema_tasks_and_splits():
    data = short_video(batch_size=256)
    assert data.num_rows == {"train": 2000, "val": 500, "test": 700}
    assert [task.name for task in data.tasks][:2] == ["effective_view", "long_view"]
    assert data.schema.flat_width == 8 * 8 + 24
    sizes = {name: [] for name in ("train", "val", "test")}
    for name, loader in (
        ("train", data.train_dataloader()),
        ("val", data.val_dataloader()),
        ("test", data.test_dataloader()),
    ):
        for batch in loader:
            assert int(batch["cat"].max()) < max(f.vocab_size for f in data.schema.categorical)
            assert set(batch) == {"cat", "dense", "labels", "group"}
            sizes[name].append(len(batch["labels"]))
    assert sizes["train"] == [256] * 7  # whole batches only
    assert sum(sizes["val"]) == 500
    assert sum(sizes["test"]) == 700


def test_base_rate_is_the_share_of_positives_in_the_training_split():
    data = short_video()
    raw = datasets.load("short-video", **SMALL)
    assert data.tasks[0].base_rate == pytest.approx(raw.train["effective_view"].mean())


def test_same_seed_gives_the_same_batches_and_another_seed_others():
    one, two, other = (short_video(batch_size=128, seed=s) for s in (0, 0, 1))
    first = [next(iter(data.train_dataloader()))["cat"] for data in (one, two, other)]
    assert torch.equal(first[0], first[1])
    assert not torch.equal(first[0], first[2])


def test_tasks_and_width_can_be_chosen():
    data = short_video(tasks=["like", "click"], embedding_dim=3)
    assert [task.name for task in data.tasks] == ["like", "click"]
    assert data.schema.flat_width == 8 * 3 + 24
    with pytest.raises(UnknownNameError, match="Did you mean 'like'"):
        short_video(tasks=["likes"])


def test_min_count_overrides_that_of_the_set():
    assert short_video(min_count=10**6).schema["item"].vocab_size == 1


@pytest.mark.parametrize("value", [2.0, -1.0, 0.5])
def test_label_that_does_not_fit_names_task_column_and_row(value):
    train = {"item": np.array([1, 1, 2]), "click": np.array([0, 1, value])}
    with pytest.raises(ArgumentError, match=r"Task 'click': column 'click' holds .* in row 2 of"):
        own(train).setup()


def test_missing_labels_stay_missing():
    train = {"item": np.array([1, 1, 2]), "click": np.array([0, 1, np.nan])}
    data = own(train, batch_size=3)
    data.setup()
    assert data.tasks[0].base_rate == 0.5
    assert int(next(iter(data.train_dataloader()))["labels"].isnan().sum()) == 1


@pytest.mark.parametrize(("labels", "what"), [([0, 0, 0], "positive"), ([1, 1, 1], "negative")])
def test_task_whose_labels_are_all_alike_is_named(labels, what):
    train = {"item": np.array([1, 1, 2]), "click": np.array(labels)}
    data = own(train)
    with pytest.warns(UserWarning, match=f"Task 'click' has no {what} label among 3"):
        data.setup()
    assert data.tasks[0].base_rate is None


def test_sample_mask_bounds_the_base_rate():
    train = {"item": np.array([1, 1, 2, 2]), "click": [1, 1, 0, 0], "buy": [1, 0, 0, 0]}
    tasks = (Task("click"), Task("buy", sample_mask="click"))
    tables = Tables(FeatureSchema([Categorical("item", 1, 4)]), tasks, train, train, train, "own")
    data = RankingData.from_tables(tables, batch_size=4)
    data.setup()
    assert [task.base_rate for task in data.tasks] == [0.5, 0.5]
    assert next(iter(data.val_dataloader()))["mask"].sum(0).tolist() == [4, 2]


def test_missing_column_is_named():
    with pytest.raises(UnknownNameError, match="'click'"):
        own({"item": np.array([1, 1, 2])}).setup()


def test_files_are_fetched_only_if_allowed(tmp_path, monkeypatch):
    asked = []
    place = importlib.import_module("moeapps.data.locate")  # the package has a function so named
    monkeypatch.setattr(place, "fetch", lambda card, home: asked.append(card.name))
    monkeypatch.delenv("MOEAPPS_OFFLINE", raising=False)
    for download in (False, True):
        data = RankingData("movielens-1m", root=tmp_path, download=download)
        if download:
            with pytest.raises(DataNotFoundError, match="MovieLens-1M not found"):
                data.prepare_data()
        else:
            data.prepare_data()
    assert asked == ["movielens-1m"]


def test_too_large_batch_is_named():
    data = short_video(batch_size=4096)
    with pytest.raises(ArgumentError, match="2000 rows do not make a batch"):
        data.train_dataloader()


def test_encoder_of_a_checkpoint_is_used_on_other_data():
    train = {"item": np.array([1, 1, 2]), "click": [0, 1, 0]}
    first, second = own(train), own({**train, "item": np.array([2, 3, 3])})
    first.setup()
    second.setup()
    second.load_state_dict(first.state_dict())
    assert second.schema == first.schema
    assert next(iter(second.val_dataloader()))["cat"][:, 0].tolist() == [2, 0]


class Plain(pl.LightningModule):
    """Remembers what it was given."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen = []

    def training_step(self, batch, index):
        self.seen.append(batch["cat"][:, 1].tolist())
        return self.layer(batch["labels"][:, :1]).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


class SaveAt(pl.Callback):
    """Saves in the middle of training, as a run does that is broken off later."""

    def __init__(self, folder, step):
        self.folder, self.step = folder, step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.folder / "last.ckpt")


def trainer(tmp_path, **arguments):
    return pl.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, default_root_dir=tmp_path, **arguments,
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("steps", [3, 7, 10])
def test_lightning_resumes_at_the_exact_batch(tmp_path, steps):
    whole = Plain()
    trainer(tmp_path, max_epochs=2).fit(whole, datamodule=short_video(batch_size=256))
    first, second = Plain(), Plain()
    trainer(tmp_path, max_steps=steps, max_epochs=2, callbacks=[SaveAt(tmp_path, steps)]).fit(
        first, datamodule=short_video(batch_size=256)
    )
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert checkpoint["RankingData"]["encoder"]["vocabularies"]["tab"] == [0, 1, 2, 3]
    trainer(tmp_path, max_epochs=2).fit(
        second, datamodule=short_video(batch_size=256), ckpt_path=tmp_path / "last.ckpt"
    )
    assert first.seen + second.seen == whole.seen
    assert len(whole.seen) == 14


# ------------------------------------------------------------------------------------- own files


def files(tmp_path, kind="parquet", rows=900):
    pa = pytest.importorskip("pyarrow", reason='needs pip install "moeapps[recsys]"')
    import pyarrow.csv
    import pyarrow.parquet

    rng = np.random.default_rng(0)
    for name, count in (("train", rows), ("val", rows // 3)):
        columns = {
            "user": rng.permutation(np.resize(["ann", "ben", "cy"], count)),
            "item": rng.integers(0, 50, count),
            "price": rng.gamma(2, 10, count),
            "click": rng.integers(0, 2, count),
            "w": rng.uniform(size=count),
        }
        if kind == "parquet":
            columns["tags"] = [list(range(i % 3)) for i in range(count)]
            pyarrow.parquet.write_table(
                pa.table(columns), tmp_path / f"{name}.parquet", row_group_size=100
            )
        else:
            pyarrow.csv.write_csv(pa.table(columns), tmp_path / f"{name}.csv")
    features = [Categorical("user", 1, 4), Categorical("item", 1, 4), Dense("price")]
    if kind == "parquet":
        features.append(MultiHot("tags", 1, 4))
    return {
        "train": str(tmp_path / f"train.{kind}"),
        "val": str(tmp_path / f"val.{kind}"),
        "schema": FeatureSchema(features, group_key="user").to_dict(),
        "tasks": ["click"],
    }


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_files_are_streamed(tmp_path, kind):
    data = RankingFiles(**files(tmp_path, kind), batch_size=128, buffer_blocks=2, weight="w")
    data.setup()
    assert data.num_rows == {"train": 900, "val": 300, "test": 300}
    assert data.schema["user"].vocab_size == 4
    assert 0.4 < data.tasks[0].base_rate < 0.6
    batches = list(data.train_dataloader())
    assert [len(b["labels"]) for b in batches] == [128] * 7
    assert {"cat", "dense", "labels", "group", "weight"} <= set(batches[0])
    assert len(set(batches[0]["group"].tolist())) == 3
    assert sum(len(b["labels"]) for b in data.val_dataloader()) == 300


def test_labels_in_files_are_checked(tmp_path):
    arguments = files(tmp_path)
    arguments["tasks"] = [{"name": "click", "label": "item"}]
    with pytest.raises(ArgumentError, match=r"column 'item' holds .* of the val split"):
        RankingFiles(**arguments).setup()


def test_files_must_be_named(tmp_path):
    arguments = files(tmp_path)
    with pytest.raises(ConfigError, match="val=''"):
        RankingFiles(**{**arguments, "val": ""})
