"""Ali-CCP: clicks and purchases in Taobao, from skeletons and common features as published."""

from collections.abc import Sequence as Many
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moeapps.data.card import DataFile, DatasetCard
from moeapps.data.locate import locate
from moeapps.errors import ArgumentError, DataIntegrityError
from moeapps.recsys.columns import Columns, concat_columns, match_rows, take_columns, take_known
from moeapps.recsys.datasets.tables import Tables, count_rows
from moeapps.recsys.schema import Categorical, Dense, FeatureSchema, MultiHot, Task
from moeapps.recsys.vocabularies import MISSING

if TYPE_CHECKING:
    import pyarrow as pa

Array = NDArray[Any]

USER = ("101", "121", "122", "124", "125", "126", "127", "128", "129")
ITEM = ("205", "206", "207", "216", "508", "509", "702", "853", "301")
HISTORY = ("109_14", "110_14", "127_14", "150_14")  # ids of a user's past, with their strength
NUMBERS = ("508", "509", "702", "853")  # one id each, with a strength
BAGS = (*HISTORY, "210")
FIELDS = {"all": (*USER, *ITEM, *BAGS), "aitm": (*USER, *ITEM)}
SPLITS = ("tenth-of-train", "half-of-test")
MIN_COUNT = 10

_SKELETON = {
    "sample_id": "int", "click": "int", "purchase": "int", "common_feature_index": "text",
    "feature_num": "int", "features": "text",
}  # fmt: skip
_COMMON = {"common_feature_index": "text", "feature_num": "int", "features": "text"}

CARDS = {
    "ali-ccp": DatasetCard(
        name="ali-ccp",
        title="Ali-CCP",
        domain="recsys",
        task="2 binary tasks",
        metric="auroc",
        sizes={"rows": 85_000_000, "features": 31},
        classes=2,
        splits="published training and test files; validation: a tenth of training or half of test",
        licence="for research, after registration [check]",
        source="Ali-CCP: Alibaba Click and Conversion Prediction, Tianchi (Alibaba Cloud)",
        url="https://tianchi.aliyun.com/dataset/408",
        citation="Ma et al., Entire Space Multi-Task Model: An Effective Approach for Estimating "
        "Post-Click Conversion Rate, SIGIR 2018",
        files=tuple(
            DataFile(f"ali-ccp/{name}_{part}.csv")
            for part in ("train", "test")
            for name in ("sample_skeleton", "common_features")
        ),
        notes="About 42 M training and 43 M test rows, 3.9 % clicked: rounded numbers. In memory "
        "they need some 30 GB; use limit to try things out.",
    )
}


def read(
    card: DatasetCard,
    *,
    root: str | Path | None = None,
    split: str = "tenth-of-train",
    download: bool = False,
    fields: str = "all",
    limit: int | None = None,
    seed: int = 0,
) -> Tables:
    r"""Shown products: clicked, and bought after the click; both tasks on all rows.

    A feature string holds entries ``field \x02 id \x03 strength`` with ``\x01`` between them.
    Skeletons hold those of product and context, and name a row of common features that hold those
    of the user. Rows bought without a click are dropped. Ids seen less than ten times in the
    training split are unknown.

    Args:
        card: The card of the set.
        root: Data home; the files are ``<root>/ali-ccp/sample_skeleton_train.csv`` and so on.
        split: Where validation rows come from: ``"tenth-of-train"`` at random, as AITM does, or
            ``"half-of-test"``.
        download: Has no effect: the files are behind a registration.
        fields: ``"aitm"``: the 18 fields of AITM with one id each. ``"all"``: besides, the five
            fields with several ids as bags, and the strengths of eight fields as numbers
            ``D<field>``, summed over a row's ids.
        limit: Read the first rows of either skeleton only.
        seed: Of the split.

    Raises:
        ArgumentError: For an unknown choice of fields.
        DataNotFoundError: Naming missing files and their official page.
        DataIntegrityError: A file is empty, truncated or not the published one.

    Notes:
        Where a field with one id occurs twice in a row, the last entry counts, as in AITM's code.
    """
    if fields not in FIELDS:
        raise ArgumentError(f"fields={fields!r} does not exist. Choose {' or '.join(FIELDS)}.")
    files = locate(card, root=root, download=download)
    wanted = FIELDS[fields]
    known, test = (
        _joined(files[f"sample_skeleton_{part}.csv"], files[f"common_features_{part}.csv"],
                wanted, limit)
        for part in ("train", "test")
    )  # fmt: skip
    rng = np.random.default_rng(seed)
    if split == "tenth-of-train":
        is_val = rng.permutation(count_rows(known)) < count_rows(known) // 10
        train, val = take_columns(known, ~is_val), take_columns(known, is_val)
    else:
        is_val = rng.permutation(count_rows(test)) < count_rows(test) // 2
        train, val, test = known, take_columns(test, is_val), take_columns(test, ~is_val)
    features: list[Any] = [Categorical(name, 1, 5) for name in wanted if name not in BAGS]
    if fields == "all":
        features += [MultiHot(name, 1, 5, pooling="mean") for name in BAGS]
        features += [Dense(f"D{name}") for name in (*HISTORY, *NUMBERS)]
    return Tables(
        FeatureSchema(features),
        (Task("click", group="click"), Task("purchase", group="purchase")),
        train, val, test,
        f"published training and test files, validation: {split.replace('-', ' ')}, seeded",
        min_count=MIN_COUNT,
    )  # fmt: skip


def _joined(skeleton: Path, common: Path, wanted: Many[str], limit: int | None) -> Columns:
    """Rows of a skeleton file with the features of their users."""
    from moeapps.recsys.files import Blocks, CsvFormat

    def blocks(path: Path, types: dict[str, str], columns: Many[str]) -> Blocks:
        return Blocks(path, columns, csv=CsvFormat(names=tuple(types), types=types, quoted=False))

    of_user = [f for f in wanted if f in (*USER, *HISTORY)]
    of_item = [f for f in wanted if f not in of_user]
    users = []
    for block in blocks(common, _COMMON, ("common_feature_index", "features")):
        parsed = parse_features(common, block["features"], of_user)
        users.append({"key": block["common_feature_index"], **parsed})
    user = concat_columns(users)
    rows = []
    kept = 0
    for block in blocks(skeleton, _SKELETON, [c for c in _SKELETON if c != "feature_num"]):
        valid = (block["click"] == 1) | (block["purchase"] == 0)
        if limit is not None:
            valid &= np.cumsum(valid) <= limit - kept
        kept += int(valid.sum())
        block = take_columns(block, valid)
        rows.append(
            parse_features(skeleton, block["features"], of_item)
            | {"key": block["common_feature_index"]}
            | {name: block[name].astype(np.float32) for name in ("click", "purchase")}
        )
        if kept == limit:
            break
    joined = concat_columns(rows)
    key = joined.pop("key")
    place = match_rows(key.astype(str), user.pop("key").astype(str))
    if (place < 0).any():
        raise DataIntegrityError(
            f"{common} has no row {key[(place < 0).argmax()]!r}, which {skeleton} names. The file "
            "is cut short, or the two do not belong together: fetch both again."
        )
    return joined | take_known(user, place)


def parse_features(path: Path, texts: Array, fields: Many[str]) -> Columns:
    """Feature strings as columns: ids, bags of ids, and summed strengths ``D<field>``.

    Raises:
        DataIntegrityError: An entry is not of the form ``field, id, strength``.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    entries = pc.split_pattern(pa.array(texts, pa.string()), "\x01")
    row = np.repeat(np.arange(len(texts)), entries.value_lengths().to_numpy(zero_copy_only=False))
    flat = entries.flatten()
    field, rest = _halves(path, flat, "\x02", row)
    number, strength = _halves(path, rest, "\x03", row)
    column: Columns = {}
    for name in fields:
        chosen = pc.equal(field, name)
        mask = chosen.to_numpy(zero_copy_only=False)
        rows = row[mask]
        try:
            ids = number.filter(chosen).cast(pa.int64()).to_numpy(zero_copy_only=False)
            value = strength.filter(chosen).cast(pa.float64()).to_numpy(zero_copy_only=False)
        except pa.ArrowInvalid as error:
            raise DataIntegrityError(
                f"{path}: field {name} has an entry that is no number ({error}). Expected "
                "field, id and strength: the file is damaged, fetch it again."
            ) from error
        if name in BAGS:
            counts = np.bincount(rows, minlength=len(texts))
            column[name] = (ids, np.cumsum(counts) - counts)
        else:
            single = np.full(len(texts), MISSING)
            single[rows] = ids  # the last entry of a row stays
            column[name] = single
        if name in (*HISTORY, *NUMBERS):
            column[f"D{name}"] = np.bincount(rows, value, len(texts)).astype(np.float32)
    return column


def _halves(path: Path, texts: "pa.Array", mark: str, row: Array) -> tuple["pa.Array", "pa.Array"]:
    """Both sides of the one mark in each text."""
    import pyarrow as pa
    import pyarrow.compute as pc

    parts = pc.split_pattern(texts, mark)
    wrong = parts.value_lengths().to_numpy(zero_copy_only=False) != 2
    if wrong.any():
        place = int(wrong.argmax())
        raise DataIntegrityError(
            f"{path}: entry {texts[place].as_py()!r} of row {int(row[place])} of its block. "
            "Expected field, id and strength: the file is cut short, fetch it again."
        )
    both = parts.flatten()
    first = pa.array(np.arange(0, len(both), 2))
    return both.take(first), both.take(pc.add(first, 1))


def make_fixture(card: DatasetCard, root: Path, rows: int, seed: int) -> None:
    """Write ``rows`` and half as many rows with the features of 30 users."""
    rng = np.random.default_rng(seed)

    def entry(field: str, high: int = 9) -> str:
        return f"{field}\x02{rng.integers(10**6, 10**6 + high)}\x03{rng.gamma(2, 1):.5f}"

    def features(names: Many[str]) -> tuple[int, str]:
        entries = [
            entry(name) for name in names for _ in range(rng.integers(0, 4) if name in BAGS else 1)
        ]
        return len(entries), "\x01".join(entries)

    for part, count in (("train", rows), ("test", rows // 2)):
        common = [(f"{part}{user:08x}", *features((*USER, *HISTORY))) for user in range(30)]
        text = "\n".join(f"{key},{number},{entries}" for key, number, entries in common)
        (root / f"ali-ccp/common_features_{part}.csv").write_text(text + "\n", encoding="ascii")
        lines = []
        for sample in range(count):
            click, purchase = ((0, 0), (0, 0), (1, 0), (1, 1), (0, 1))[sample % 5]
            key = common[rng.integers(30)][0]
            number, entries = features((*ITEM, "210"))
            lines.append(f"{sample},{click},{purchase},{key},{number},{entries}")
        text = "\n".join(lines) + "\n"
        (root / f"ali-ccp/sample_skeleton_{part}.csv").write_text(text, encoding="ascii")
