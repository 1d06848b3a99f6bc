"""One module for each upstream protocol."""
