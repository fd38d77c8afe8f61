"""pyrune: an OCI container runtime, with runc's command line, that runs AWS Nitro Enclaves."""

__version__ = "0.1.0"
