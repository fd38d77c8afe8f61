"""What runs inside the enclaves that pyrune builds: their first process, in C (init/), and how it is compiled (build).

An image made elsewhere runs its own init and needs nothing of this.
"""
