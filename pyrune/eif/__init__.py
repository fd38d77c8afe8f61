"""The enclave image format (EIF): bytes in, typed objects out, and the way back. No processes, no devices."""
