"""Checking a data set and showing what it holds."""
