"""Graph models, one published method per file."""
