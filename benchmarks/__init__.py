"""Benchmarks of mdssd against other tools: `make bench` and `make bench-report`."""
