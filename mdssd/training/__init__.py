"""Training a model: settings, step, loop."""
