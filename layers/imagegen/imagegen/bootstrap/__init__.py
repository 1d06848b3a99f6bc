"""The only place that wires, a module for each function. Everything is built on first use and kept with the process."""
