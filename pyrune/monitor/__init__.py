"""The process that stands for one container: it holds the enclave, and its pid is the container's."""
