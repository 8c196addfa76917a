"""One module per system: a process of its own, run by that system's interpreter, that speaks `protocol`."""
