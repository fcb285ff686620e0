import pytest

from moeapps.cli.configs import check_config, check_schema, parse_yaml, read_config
from moeapps.cli.overrides import apply_overrides, split_overrides
from moeapps.errors import ConfigError
from moeapps.training.classes import import_class


def config(**changes):
    return {
        "schema": 1,
        "model": {"class_path": "NodeClassifier", "init_args": {}},
        "data": {"class_path": "NodeData", "init_args": {"dataset": "mixed-csbm"}},
        **changes,
    }


def test_numbers_are_read_as_people_write_them():
    text = "{a: 1e-3, b: 5e4, c: 1.5E2, d: -2e-1, e: 12, f: 0.5, g: 1e, h: e1, i: v1e3}"
    assert parse_yaml(text, source="t") == {
        "a": 1e-3, "b": 5e4, "c": 150.0, "d": -0.2, "e": 12, "f": 0.5, "g": "1e", "h": "e1",
        "i": "v1e3",
    }  # fmt: skip


def test_a_key_given_twice_is_named_with_its_line():
    with pytest.raises(ConfigError, match=r"t, line 2: the key 'a' is given twice"):
        parse_yaml("a: 1\na: 2\n", source="t")


def test_tags_that_build_objects_are_refused():
    with pytest.raises(ConfigError, match="not valid YAML"):
        parse_yaml("!!python/object/apply:os.system ['true']", source="t")


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (None, "Add the line 'schema: 1'"),
        (0, "Change the line to 'schema: 1'"),
        ("one", "Change the line to 'schema: 1'"),
        (True, "Change the line to 'schema: 1'"),
        (2, "newer moeapps.*pip install --upgrade"),
    ],
)
def test_other_schemas_say_what_to_edit(schema, message):
    given = {} if schema is None else {"schema": schema}
    with pytest.raises(ConfigError, match=message):
        check_schema(given, source="a.yaml")


def test_missing_file_offers_its_neighbours(tmp_path):
    (tmp_path / "mowst_cora.yaml").write_text("schema: 1\n")
    with pytest.raises(ConfigError, match=r"Did you mean .*mowst_cora\.yaml"):
        read_config(tmp_path / "mowst_core.yaml")


@pytest.mark.parametrize("text", ["- 1\n", "text", ""])
def test_a_file_without_keys_is_refused(tmp_path, text):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ConfigError, match="key: value"):
        read_config(tmp_path / "a.yaml")


def test_overrides_reach_init_args_by_their_short_form():
    given = config()
    apply_overrides(
        given,
        [
            ("model.hidden_channels", "16"),
            ("model.init_args.dropout", "5e-1"),
            ("data.dataset_args.size", "tiny"),
            ("trainer.max_epochs", "-1"),
            ("seed_everything", "3"),
            ("data", "NodeData"),
        ],
    )
    assert given["model"]["init_args"] == {"hidden_channels": 16, "dropout": 0.5}
    assert given["data"] == {
        "class_path": "NodeData",
        "init_args": {"dataset": "mixed-csbm", "dataset_args": {"size": "tiny"}},
    }
    assert given["trainer"] == {"max_epochs": -1}
    assert given["seed_everything"] == 3


def test_negative_numbers_are_values_not_flags():
    assert split_overrides(["--trainer.max_epochs", "-1", "--resume", "run"]) == (
        ["--resume", "run"],
        [("trainer.max_epochs", "-1")],
    )


def test_an_override_without_a_value_is_named():
    with pytest.raises(ConfigError, match=r"--model\.joint has no value"):
        split_overrides(["--model.joint", "--config", "a.yaml"])


def test_an_unknown_top_key_gets_close_matches():
    with pytest.raises(ConfigError, match=r"'modle\.hidden'.*Did you mean model\.hidden"):
        apply_overrides({}, [("modle.hidden", "1")])


def test_a_key_below_a_value_is_refused():
    with pytest.raises(ConfigError, match="no key below"):
        apply_overrides(config(), [("data.dataset.name", "cora")])


def test_an_allowed_configuration_passes_and_gets_full_names():
    given = config(data="NodeData")
    given["data"] = {"class_path": "NodeData", "init_args": None}
    check_config(given, source="a.yaml")
    assert given["model"]["class_path"] == "moeapps.graphs.modules.NodeClassifier"
    assert given["data"]["init_args"] == {}
    assert given["trainer"] == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modle": 1}, r"unknown key 'modle'\. Did you mean model"),
        ({"trainer": {"max_epoch": 1}}, r"'trainer\.max_epoch'\. Did you mean trainer\.max_epochs"),
        ({"data": {"class_path": "NodeData", "init_args": {"datset": "cora"}}},
         r"'data\.init_args\.datset'\. Did you mean data\.init_args\.dataset"),
        ({"data": {"class_path": "NodeData", "dataset": "cora"}}, r"unknown key 'data\.dataset'"),
        ({"data": {"class_path": "NodeDatas"}}, "unknown class 'NodeDatas'. Did you mean NodeData"),
        ({"data": {"init_args": {}}}, "'data' needs a class_path"),
        ({"data": {"class_path": "NodeData", "init_args": [1]}}, "init_args must be"),
        ({"trainer": 3}, "trainer must be"),
    ],
)  # fmt: skip
def test_mistakes_name_the_key_and_the_file(changes, message):
    with pytest.raises(ConfigError, match=message) as caught:
        check_config(config(**changes), source="a.yaml")
    assert "a.yaml" in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"class_path": "os.system"}},
        {"model": {"class_path": "subprocess.Popen", "init_args": {"args": "true"}}},
        {"model": {"class_path": "moeappsx.Evil"}},
        {"trainer": {"callbacks": [{"class_path": "antigravity.Anti"}]}},
        {"trainer": {"callbacks": "antigravity.Anti"}},
        {"trainer": {"logger": ["antigravity.Anti"]}},
        {"trainer": {"strategy": "antigravity.Anti"}},
    ],
)
def test_foreign_classes_are_refused_before_their_module_is_imported(changes):
    import sys

    with pytest.raises(ConfigError, match="may not use"):
        check_config(config(**changes), source="a.yaml")
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("moeapps.nothing.Here", "no module"),
        ("moeapps.graphs.modules.Nothing", "no class 'Nothing'"),
        ("moeapps.registry.create_model", "is not a class"),
        (3, "may not use"),
    ],
)
def test_names_that_are_no_class_are_errors(path, message):
    with pytest.raises(ConfigError, match=message):
        import_class(path)
