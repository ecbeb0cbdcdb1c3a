"""Measures a detector on a data set, and writes a report."""
