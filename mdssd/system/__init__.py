"""What every room stands on: files, processes, memory, signals."""
