"""Training, evaluation and detection."""
