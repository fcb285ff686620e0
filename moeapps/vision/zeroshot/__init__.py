"""Generalised zero-shot classification: classes with images and classes with attributes only."""
