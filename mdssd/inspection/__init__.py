"""Checks a data set, and draws samples of it."""
