"""Measuring a detector on a data set, and the report of it."""
