"""Census-Income (KDD): the benchmark of MMoE and PLE, from its two published files."""

from pathlib import Path
from typing import Any

import numpy as np

from moeapps.data.card import DataFile, DatasetCard
from moeapps.data.locate import locate
from moeapps.errors import DataIntegrityError
from moeapps.recsys.columns import Columns, take_columns
from moeapps.recsys.datasets.tables import Tables, stratified_halves
from moeapps.recsys.schema import Categorical, Dense, FeatureSchema, Task

COLUMNS = (
    "age", "class of worker", "industry code", "occupation code", "education", "wage per hour",
    "enrolled in edu inst last wk", "marital status", "major industry code",
    "major occupation code", "race", "hispanic origin", "sex", "member of a labor union",
    "reason for unemployment", "full or part time employment stat", "capital gains",
    "capital losses", "dividends from stocks", "tax filer status", "region of previous residence",
    "state of previous residence", "detailed household and family stat",
    "detailed household summary", "instance weight", "migration code-change in msa",
    "migration code-change in reg", "migration code-move within reg",
    "live in this house 1 year ago", "migration prev res in sunbelt",
    "num persons worked for employer", "family members under 18", "country of birth father",
    "country of birth mother", "country of birth self", "citizenship",
    "own business or self employed", "fill inc questionnaire for veterans admin",
    "veterans benefits", "weeks worked in year", "year", "income",
)  # fmt: skip
DENSE = (
    "age", "wage per hour", "capital gains", "capital losses", "dividends from stocks",
    "num persons worked for employer", "weeks worked in year",
)  # fmt: skip
CATEGORICAL = tuple(c for c in COLUMNS if c not in (*DENSE, "instance weight", "income"))

# The text behind each label; a label's column is no feature.
LABELS = {
    "income": ("income", ("50000+.",)),
    "marital": ("marital status", ("Never married",)),
    "college": (
        "education",
        (
            "Some college but no degree", "Associates degree-occup /vocational",
            "Associates degree-academic program", "Bachelors degree(BA AB BS)",
            "Masters degree(MA MS MEng MEd MSW MBA)", "Prof school degree (MD DDS DVM LLB JD)",
            "Doctorate degree(PhD EdD)",
        ),
    ),
}  # fmt: skip
PAIRS = {"income-marital": ("income", "marital"), "college-marital": ("college", "marital")}
SPLITS = tuple(PAIRS)

_SAMPLE = Path(__file__).with_name("census_income_sample.npz")
_SPLIT_SOURCE = "published training file; published test file halved by income, seeded"


def _card(name: str, title: str, rows: int, files: tuple[DataFile, ...], notes: str) -> DatasetCard:
    return DatasetCard(
        name=name,
        title=title,
        domain="recsys",
        task="2 binary tasks",
        metric="auroc",
        sizes={"rows": rows, "features": 39},
        classes=2,
        splits="training file as published; test file halved, stratified on income",
        licence="CC BY 4.0",
        source="Census-Income (KDD), UCI Machine Learning Repository",
        url="https://archive.ics.uci.edu/dataset/117/census+income+kdd",
        citation="US Census Bureau, Current Population Survey 1994 and 1995; Census-Income (KDD), "
        "UCI Machine Learning Repository, 2000, doi:10.24432/C5N30T",
        files=files,
        notes=notes,
    )


CARDS = {
    card.name: card
    for card in (
        _card(
            "census-income", "Census-Income (KDD)", 299_285,
            (
                DataFile("census-income/census-income.data"),
                DataFile("census-income/census-income.test"),
            ),
            "6.2 % have income above 50,000; 43 % never married. The instance weight is no input.",
        ),
        _card(
            "census-income-sample", "Census-Income (KDD), one row in ten", 29_928, (),
            "Comes with moeapps: 10 % of either file, stratified on income and marital status. For "
            "trying things out; quote results on the whole set.",
        ),
    )
}  # fmt: skip


def read(
    card: DatasetCard,
    *,
    root: str | Path | None = None,
    split: str = "income-marital",
    download: bool = False,
    seed: int = 0,
) -> Tables:
    """Persons of two US surveys: income above 50,000 or college, and never married.

    ==================== ============ ============= ====== ===========
    Set                  Training     Validation    Test   Features
    ==================== ============ ============= ====== ===========
    census-income             199,523        49,881 49,881 32 + 7
    census-income-sample       19,952         4,987  4,989 32 + 7
    ==================== ============ ============= ====== ===========

    The seven numbers are standardised. Of the 33 other columns, those that are labels are no
    features; income is one where it is no label.

    Args:
        card: The whole set or the sample that comes with the package.
        root: Data home; the files are ``<root>/census-income/census-income.data`` and ``.test``,
            unpacked.
        split: Pair of tasks: ``"income-marital"`` or ``"college-marital"``.
        download: Has no effect: there is no direct address of the files.
        seed: Of the halves of the test file.

    Raises:
        DataNotFoundError: Naming missing files and their official page.
        DataIntegrityError: A file is empty, truncated or not the published one.

    Notes:
        "At least college" counts all from "Some college but no degree" upwards; the MMoE paper does
        not say.

    Example:
        >>> from moeapps.recsys.datasets import load
        >>> tables = load("census-income-sample")
        >>> tables.num_rows["train"], round(float(tables.train["marital"].mean()), 2)
        (19952, 0.43)
    """
    if card.files:
        files = locate(card, root=root, download=download)
        train = _read_file(files["census-income.data"])
        rest = _read_file(files["census-income.test"])
    else:
        train, rest = _read_sample()
    first_half = stratified_halves(rest["income"], seed)
    val, test = take_columns(rest, first_half), take_columns(rest, ~first_half)
    names = PAIRS[split]
    taken = {LABELS[name][0] for name in names}
    categorical = [c for c in (*CATEGORICAL, "income") if c not in taken]
    schema = FeatureSchema(
        [
            *(Categorical(name, 1, 4) for name in categorical),
            *(Dense(name, transform="standard") for name in DENSE),
        ]
    )
    kept = [feature.name for feature in schema.features]

    def labelled(columns: Columns) -> Columns:
        labels = {
            name: np.isin(columns[LABELS[name][0]], LABELS[name][1]).astype(np.float32)
            for name in names
        }
        return {name: columns[name] for name in kept} | labels

    return Tables(
        schema,
        tuple(Task(name, group=name) for name in names),
        labelled(train), labelled(val), labelled(test), _SPLIT_SOURCE,
    )  # fmt: skip


def _read_file(path: Path) -> Columns:
    from moeapps.recsys.files import CsvFormat, read_columns

    types = {name: "float" if name in DENSE else "text" for name in COLUMNS}
    written = CsvFormat(names=COLUMNS, types=types, quoted=False, strip=True)
    columns = read_columns(path, [c for c in COLUMNS if c != "instance weight"], csv=written)
    unknown = set(columns["income"]) - {"- 50000.", "50000+."}
    if unknown:
        row = int(np.isin(columns["income"], list(unknown)).argmax())
        raise DataIntegrityError(
            f"{path}, line {row + 1}, column 'income': {columns['income'][row]!r}. Expected "
            "'- 50000.' or '50000+.': it is not the published file, fetch it again."
        )
    return columns


def _read_sample() -> tuple[Columns, Columns]:
    """Columns are stored as numbers of their values; texts of a column are one object each."""
    with np.load(_SAMPLE) as stored:
        columns: Columns = {}
        for name in (*CATEGORICAL, "income"):
            columns[name] = stored[f"{name}/values"].astype(object)[stored[name]]
        for name in DENSE:
            columns[name] = stored[name].astype(np.float64)
        rows = int(stored["train_rows"])
    return take_columns(columns, slice(None, rows)), take_columns(columns, slice(rows, None))


def make_fixture(card: DatasetCard, root: Path, rows: int, seed: int) -> None:
    """Write ``rows`` and half as many made-up persons."""
    rng = np.random.default_rng(seed)
    for file, count in zip(card.files, (rows, rows // 2), strict=True):
        table = {name: _made(name, rng, count) for name in COLUMNS}
        lines = [", ".join(row) for row in zip(*table.values(), strict=True)]
        (root / file.path).write_text("\n".join(lines) + "\n", encoding="ascii")


def _made(name: str, rng: np.random.Generator, count: int) -> list[str]:
    if name == "instance weight":
        return [f"{v:.2f}" for v in rng.uniform(50, 5_000, count)]
    if name in DENSE:
        return [str(v) for v in rng.integers(0, 90, count)]
    values: Any = ["Not in universe", "?", f"Some {name}"]
    if name == "income":
        values = ["- 50000.", "50000+."]
    elif name == "marital status":
        values = ["Never married", "Divorced", "Widowed"]
    elif name == "education":
        values = ["Children", "High school graduate", *LABELS["college"][1]]
    elif name == "year":
        values = ["94", "95"]
    return [str(v) for v in rng.permutation(np.resize(values, count))]
