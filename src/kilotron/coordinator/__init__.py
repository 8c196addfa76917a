"""Data parallelism: engine replicas, their clients and the coordinator between them, over ZMQ."""
