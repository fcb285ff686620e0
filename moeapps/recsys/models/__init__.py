"""Ranking models, one published method per file."""
