"""Data sets: folders of photos grouped by person."""
