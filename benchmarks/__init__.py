"""How fast it all is, against other tools: `make bench`, `make bench-report`."""
