"""What can be typed after each verb. Nothing here imports PyTorch or NumPy, so help is instant."""
