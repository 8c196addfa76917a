"""The HTTP face of kilotron: connections, limits, authentication, errors and endpoints.

Never imports torch. Knows nothing of models or steps; what to generate is asked of the coordinator's client.
"""
