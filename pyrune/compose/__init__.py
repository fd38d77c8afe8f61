"""Container content into the ramdisks of an enclave image: directories, image archives, what to run. No processes."""
