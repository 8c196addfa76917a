"""Speaking to an OpenAI-compatible server over HTTP, as a client. Knows no model and no engine."""
