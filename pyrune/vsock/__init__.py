"""What a parent and its enclave say to each other over vsock, whatever carries it."""
