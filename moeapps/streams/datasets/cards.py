"""What the cards of all streams have in common."""

from typing import Any

from moeapps.data.card import DatasetCard


def stream_card(
    *, name: str, title: str, instances: int, features: int, classes: int, **facts: Any
) -> DatasetCard:
    """The card of a stream; ``facts`` are the other fields of `DatasetCard`."""
    return DatasetCard(
        name=name,
        title=title,
        domain="streams",
        task="stream classification",
        metric="accuracy",
        sizes={"instances": instances, "features": features},
        classes=classes,
        splits="none: test, then train on every instance",
        **facts,
    )
