"""The Nitro back end: enclaves on /dev/nitro_enclaves."""
