"""Turns images into boxes: the detector, its runtimes, files and exports."""
