"""The modules a transformer is made of. Each does its arithmetic through the kernels it was given."""
