"""The processes of a service: started, restarted and ended in order, and the folder with their sockets."""
