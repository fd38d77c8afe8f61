"""An emulated Nitro Enclaves driver: unmodified programs meet /dev/nitro_enclaves and AF_VSOCK on any machine.

A supervisor answers the system calls that matter, by seccomp user notification. The programs under it, and all they
start, run as ever; they see a device, its pool of CPUs, and the vsock of a Nitro parent, and they hand it real huge
pages. No AF_VSOCK socket is ever opened. The rules are those of the Linux driver (drivers/virt/nitro_enclaves) as it
was observed; a comment beside each says where it departs from them, and it departs towards the stricter side.

    scenario     what the machine is like, what goes wrong, how enclaves behave
    kernel       numbers and calls of seccomp and of process inspection
    filter       which system calls are intercepted: a BPF program
    notification one intercepted call, and the ways to answer it
    task         the process that made it: its memory and its descriptors
    journal      one JSON line for each call answered and each thing that happened
    freezer      tasks that not even SIGKILL ends
    faults       errors, delays and halts, at the call, at the device behind it, or before its return
    files        paths that are not there: the device, its module's parameters, the CPUs
    cpu_pool     the pool and its cores
    memory       regions, page by page, and what an enclave finds in them
    driver       the five ioctls
    vsock        addresses of AF_VSOCK on sockets of AF_UNIX
    image        looking for the enclave image in that memory
    life         what an enclave does once started, pretending to run its image
    local_life   or really running it, in a local virtual machine
    calls        what each intercepted call comes to
    control      the control socket
    supervisor   the process that all this is in
    launch       what becomes a program under the filter
    machine      all of it as a test uses it, with fixtures for pytest

What it shows that a mock would not: real system calls from any number of processes; real huge pages, whose frame
numbers are taken when a region is registered and compared when the enclave starts, so that a fork that moved them
shows; the same memory map as the kernel tells it (kcmp), not the same pid; an enclave descriptor that is closed only
with its last copy, wherever that is.

What it cannot show:
- Pages pinned until the enclave is closed. Here munmap, or the end of the process, gives huge pages back at once, and
  the kernel may move them.
- 265, too many regions: the number that a device allows is not known here. It can be injected.
- 1 GiB pages and a second NUMA node, where the machine has none. A pool on a node that it has not refuses all memory.
- A call that waits for the device cannot be interrupted on Nitro, not even by SIGKILL. Here SIGKILL ends it at once,
  unless a fault says that it be uninterruptible, which takes a freezer of cgroup version 1.
- The close of an enclave takes its time on Nitro; here it returns at once, and what is freed is free for the next call.
- What the hypervisor answers where the driver only passes it on: taken slots, taken CIDs, connections to nobody.
- A write to the parameter ne_cpus: nothing here takes one. The control socket's verb `pool` follows the same rules.
- Paths relative to a directory of the machine's own, such as `nitro_enclaves` seen from /dev.
- fstat(2) of the open device says major 1, stat(2) of its path says 10.
"""
