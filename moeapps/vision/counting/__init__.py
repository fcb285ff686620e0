"""Counting people, cells or cars in images by density maps, from experts of several scales."""
