"""Load for a server, and what came of it: the parts of `kilotron bench serve`."""
