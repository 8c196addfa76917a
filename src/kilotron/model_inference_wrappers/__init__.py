"""One forward step of a model on one rank's shard."""
