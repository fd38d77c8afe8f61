"""The local back end: the same image in a QEMU virtual machine. Nothing in it is confidential."""
