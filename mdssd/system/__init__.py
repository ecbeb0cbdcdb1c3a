"""Files, processes, memory and signals, for every other part of the package."""
