"""The CPU backend: the reference's operations, with weight matrices packed once for the CPU's matrix library."""
