"""Files that are whole or absent, the processes of torchrun, memory, and signals."""
