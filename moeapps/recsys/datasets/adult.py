"""Adult: the small census extract of 1994, from its two published files."""

from pathlib import Path

import numpy as np

from moeapps.data.card import DataFile, DatasetCard
from moeapps.data.locate import locate
from moeapps.recsys.columns import Columns, take_columns
from moeapps.recsys.datasets.tables import Tables, stratified_halves
from moeapps.recsys.schema import Categorical, Dense, FeatureSchema, Task

COLUMNS = (
    "age", "workclass", "fnlwgt", "education", "education-num", "marital-status", "occupation",
    "relationship", "race", "sex", "capital-gain", "capital-loss", "hours-per-week",
    "native-country", "income",
)  # fmt: skip
DENSE = ("age", "education-num", "capital-gain", "capital-loss", "hours-per-week")
CATEGORICAL = (
    "workclass", "education", "occupation", "relationship", "race", "sex", "native-country",
)  # fmt: skip

_URL = "https://archive.ics.uci.edu/ml/machine-learning-databases/adult/"
CARDS = {
    "adult": DatasetCard(
        name="adult",
        title="Adult",
        domain="recsys",
        task="2 binary tasks",
        metric="auroc",
        sizes={"rows": 48_842, "features": 12},
        classes=2,
        splits="training file as published; test file halved, stratified on income",
        licence="CC BY 4.0",
        source="Adult, UCI Machine Learning Repository",
        url="https://archive.ics.uci.edu/dataset/2/adult",
        citation="Becker, Kohavi, Adult, UCI Machine Learning Repository, 1996, "
        "doi:10.24432/C5XW20",
        files=tuple(
            DataFile(f"adult/{name}", urls=(_URL + name,)) for name in ("adult.data", "adult.test")
        ),
        notes="The sampling weight fnlwgt is no input. The relationship all but tells who is "
        "married.",
    )
}


def read(
    card: DatasetCard,
    *,
    root: str | Path | None = None,
    download: bool = False,
    seed: int = 0,
) -> Tables:
    """Persons of a US survey: income above 50,000, and never married.

    ======== ========== ===== ========
    Training Validation Test  Features
    ======== ========== ===== ========
      32,561      8,140 8,141 7 + 5
    ======== ========== ===== ========

    Args:
        card: The card of the set.
        root: Data home; the files are ``<root>/adult/adult.data`` and ``adult.test``.
        download: Fetch missing files.
        seed: Of the halves of the test file.

    Raises:
        DataNotFoundError: Naming missing files and their official page.
        DataIntegrityError: A file is empty, truncated or not the published one.
    """
    files = locate(card, root=root, download=download)
    train = _read_file(files["adult.data"], skip=0)
    rest = _read_file(files["adult.test"], skip=1)
    first_half = stratified_halves(rest["income"], seed)
    features = [
        *(Categorical(name, 1, 4) for name in CATEGORICAL),
        *(Dense(name, transform="standard") for name in DENSE),
    ]
    return Tables(
        FeatureSchema(features),  # type: ignore[arg-type]
        (Task("income", group="income"), Task("marital", group="marital")),
        train, take_columns(rest, first_half), take_columns(rest, ~first_half),
        "published training file; published test file halved by income, seeded",
    )  # fmt: skip


def _read_file(path: Path, skip: int) -> Columns:
    from moeapps.recsys.files import CsvFormat, read_columns

    types = {name: "float" if name in DENSE else "text" for name in COLUMNS}
    written = CsvFormat(names=COLUMNS, types=types, quoted=False, strip=True, skip=skip)
    columns = read_columns(path, [c for c in COLUMNS if c != "fnlwgt"], csv=written)
    income, marital = columns.pop("income"), columns.pop("marital-status")
    columns["income"] = np.isin(income, (">50K", ">50K.")).astype(np.float32)
    columns["marital"] = (marital == "Never-married").astype(np.float32)
    return columns


def make_fixture(card: DatasetCard, root: Path, rows: int, seed: int) -> None:
    """Write ``rows`` and half as many made-up persons; the test file has its odd first line."""
    rng = np.random.default_rng(seed)
    values = {
        "income": ["<=50K", ">50K"],
        "marital-status": ["Never-married", "Divorced", "Married-civ-spouse"],
    }
    for file, count, end in zip(card.files, (rows, rows // 2), ("", "."), strict=True):
        table = [
            rng.integers(0, 90, count).astype(str)
            if name in (*DENSE, "fnlwgt")
            else rng.permutation(np.resize(values.get(name, ["?", "Private", name]), count))
            for name in COLUMNS
        ]
        lines = ["|1x3 Cross validator"] if end else []
        lines += [", ".join(row) + end for row in zip(*table, strict=True)]
        (root / file.path).write_text("\n".join(lines) + "\n\n", encoding="ascii")
