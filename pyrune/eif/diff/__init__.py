"""What differs between two enclave images, down to the file in a ramdisk, and which measurements that moves."""
