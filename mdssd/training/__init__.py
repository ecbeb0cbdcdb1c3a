"""Training a model. `train` in loop.py is the outline; `Run` in run.py has its steps."""
