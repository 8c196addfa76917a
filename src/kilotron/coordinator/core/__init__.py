"""The coordinator's decisions, without sockets, processes or a clock: who may talk, who runs what, who is dead."""
