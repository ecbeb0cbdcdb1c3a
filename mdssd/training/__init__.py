"""Trains a model, in runs that can be interrupted and resumed.

`train` in loop.py is the outline, and `Run` in run.py has its steps.
"""
