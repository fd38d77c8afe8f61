"""Every rule of the emulated driver, driven by real system calls of small programs."""
