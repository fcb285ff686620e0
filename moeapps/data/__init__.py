"""Where data lives, how it gets there, and how we know it is the right data. Needs no torch."""

from moeapps.data.card import DataArchive, DataFile, DatasetCard
from moeapps.data.home import data_home
from moeapps.data.locate import locate

__all__ = ["DataArchive", "DataFile", "DatasetCard", "data_home", "locate"]
