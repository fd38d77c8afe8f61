"""The device side of vhost-user: a virtio device that lives in a process of its own, outside QEMU.

A primer. A virtio device and the guest's driver talk through *virtqueues*: rings in guest memory (`virtqueue`). With
vhost-user, QEMU shows the guest the device's registers and hands everything else to us over a unix socket
(`message`): first it asks which features we have, then it sends the guest's memory as file descriptors that we map
(`memory`), then for each ring its size, where it lies, and two eventfds: *kick*, by which the guest tells us that it
put something on the ring, and *call*, by which we interrupt the guest. From then on the guest's data never pass
through QEMU. `session` is that conversation.

Who may do what to whom:

- QEMU that breaks the protocol ends the device, with one line that says how (`ProtocolError`). It is given no file
  descriptor and no memory of ours.
- A guest that breaks a ring loses its rings (`BrokenRing`) until its driver starts them again; a descriptor chain that
  makes no sense is given back unused (`BadChain`). Neither ends the device.

Not here: what the rings carry (see `pyrune.local.virtio_vsock`), packed rings, indirect descriptors, event indices,
live migration. Sources: QEMU's docs/interop/vhost-user.rst, and "VIRTIO 1.2" (OASIS, Virtual I/O Device Version 1.2).
"""
