"""The command line: one module per command. Standard output carries results, everything else goes to standard error."""
