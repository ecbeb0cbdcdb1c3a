"""From images to boxes: the detector, its runtimes, files and export."""
