"""Data parallelism: the processes of a service, who starts and watches them, and what they say to each other.

Knows engines and requests. Knows nothing of HTTP.
"""
