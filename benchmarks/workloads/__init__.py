"""The workloads A-F, run through several systems in turn on one machine; `bench_workloads.py` is the command."""
