"""The virtio socket device, with unix sockets on the host's side. No AF_VSOCK socket is ever opened here.

A primer. A virtio socket device carries streams between the guest and its host, each side having an address (*CID*) and
ports. Everything is a *packet*: a header of 44 bytes and perhaps data, sent by the guest on the *tx* queue and received
by it on the *rx* queue. A stream is asked for (REQUEST), granted (RESPONSE) or refused (RST); carries data (RW); may be
closed one direction at a time (SHUTDOWN), and ends with RST. Each side tells the other in every packet how large its
buffer for that stream is (*buf_alloc*) and how many bytes have left that buffer so far (*fwd_cnt*): so the sender knows
its *credit*, and never sends more. A third queue, for events, stays with QEMU.

The modules, each knowing only the ones before it:

    packet        the wire format
    handshake     the line by which a host program names the guest's port
    connection    one stream, between a unix socket and the guest
    host_sockets  the unix sockets in the enclave's directory, by name
    muxer         all streams, and which is next
    device        the two queues

On the host, the parent's port P (CID 3; CID 2 is the same) is the unix socket `vsock_<P>`. The guest's ports are
reached by connecting to the unix socket `vsock` and sending `CONNECT <port>\\n`; the answer is `OK <our port>\\n`. The
handshake and the form of the names are Firecracker's convention (its docs/vsock.md).

Sources: VIRTIO 1.2, 5.10 "Socket Device"; linux/virtio_vsock.h; Linux' net/vmw_vsock/virtio_transport_common.c for what
guests do.
"""
