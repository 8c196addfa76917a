"""The step loop: the only place that sees scheduler, context and controller together."""
