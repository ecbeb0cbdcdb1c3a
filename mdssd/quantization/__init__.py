"""Makes an int8 network of a checkpoint: calibration, accuracy control, the comparison of both."""
