"""Classifiers for classes of very different size, one published method per file."""
