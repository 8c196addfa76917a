"""What people import: the synchronous and the asynchronous LLM, and the one place that assembles an engine."""
