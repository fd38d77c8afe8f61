"""The small programs that run under the emulated driver, one function each. They print what they return, as JSON.

Nothing here knows of the emulation. Errors of the driver are returned as their numbers.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import mmap
import os
import select
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable

DEVICE = "/dev/nitro_enclaves"
CREATE_VM = 0x8008AE20
ADD_VCPU = 0xC004AE21
GET_IMAGE_LOAD_INFO = 0xC010AE22
SET_USER_MEMORY_REGION = 0x4018AE23
START_ENCLAVE = 0xC010AE24

MIB = 1 << 20
HUGE = 2 * MIB
MAP_HUGETLB = 0x40000
MAP_NORESERVE = 0x4000
MAP_HUGE_1GB = 30 << 26
ENOUGH = 64 * MIB

_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    program, arguments = globals()[sys.argv[2]], json.loads(sys.argv[3])
    print(json.dumps(program(*arguments)))


# --- what they are made of -----------------------------------------------------------------------------------


def attempt(call: Callable[[], object]) -> int:
    """0, or the errno."""
    try:
        call()
    except OSError as exc:
        return exc.errno or -1
    return 0


def in_child(work: Callable[[], int]) -> int:
    """What `work` returns (0 to 255) in a forked child."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write_end, struct.pack("=i", work()))
        os._exit(0)
    os.close(write_end)
    os.waitpid(child, 0)
    with os.fdopen(read_end, "rb") as result:
        return int(struct.unpack("=i", result.read(4))[0])


class Enclave:
    """A descriptor that NE_CREATE_VM gave."""

    def __init__(self) -> None:
        device = os.open(DEVICE, os.O_RDONLY | os.O_CLOEXEC)
        slot = bytearray(8)
        try:
            self.fd = fcntl.ioctl(device, CREATE_VM, slot)
        finally:
            os.close(device)
        self.slot = int.from_bytes(slot, "little")
        self.maps: list[mmap.mmap] = []

    def add_vcpu(self, vcpu: int = 0) -> int:
        argument = bytearray(struct.pack("=I", vcpu))
        fcntl.ioctl(self.fd, ADD_VCPU, argument)
        return int(struct.unpack("=I", argument)[0])

    def add_core(self) -> list[int]:
        return [self.add_vcpu(), self.add_vcpu()]

    def load_info(self, flags: int = 1) -> int:
        argument = bytearray(struct.pack("=QQ", flags, 0))
        fcntl.ioctl(self.fd, GET_IMAGE_LOAD_INFO, argument)
        return int(struct.unpack("=QQ", argument)[1])

    def add_memory(self, address: int, size: int, flags: int = 0) -> None:
        fcntl.ioctl(self.fd, SET_USER_MEMORY_REGION, bytearray(struct.pack("=QQQ", flags, size, address)))

    def add_map(self, memory: mmap.mmap) -> None:
        self.maps.append(memory)
        self.add_memory(address_of(memory), len(memory))

    def start(self, cid: int = 0, flags: int = 0) -> int:
        argument = bytearray(struct.pack("=QQ", flags, cid))
        fcntl.ioctl(self.fd, START_ENCLAVE, argument)
        return int(struct.unpack("=QQ", argument)[1])

    def poll(self, timeout_s: float = 0.0, events: int = 0) -> int:
        """The events that poll gives; 0 for none."""
        poll = select.poll()
        poll.register(self.fd, events)
        return sum(event for _, event in poll.poll(timeout_s * 1000))

    def close(self) -> None:
        os.close(self.fd)


def complete(size: int = ENOUGH) -> Enclave:
    """An enclave that can be started."""
    enclave = Enclave()
    enclave.add_core()
    enclave.add_map(huge_map(size))
    return enclave


def huge_map(size: int, flags: int = mmap.MAP_PRIVATE) -> mmap.mmap:
    return mmap.mmap(-1, size, flags | mmap.MAP_ANONYMOUS | MAP_HUGETLB)


def address_of(memory: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def answer_heartbeat(listener: socket.socket) -> tuple[int, int]:
    """Take one connection and give the byte back; who it was."""
    peer, address = listener.accept()
    with peer:
        peer.sendall(peer.recv(1))
    return int(address[0]), int(address[1])


def heartbeat_listener() -> socket.socket:
    listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    listener.bind((socket.VMADDR_CID_ANY, 9000))
    listener.listen()
    return listener


# --- creating ------------------------------------------------------------------------------------------------


def describe_new_enclave() -> object:
    enclave = Enclave()
    flags = fcntl.fcntl(enclave.fd, fcntl.F_GETFD)
    return {"close_on_exec": bool(flags & fcntl.FD_CLOEXEC), "slot": enclave.slot, "poll": enclave.poll()}


def create_many(count: int) -> object:
    """Outcomes of so many creates, with nothing closed in between."""
    kept = []
    outcomes = []
    for _ in range(count):
        outcomes.append(attempt(lambda: kept.append(Enclave())))
    return outcomes


def create_with_bad_pointer() -> object:
    device = os.open(DEVICE, os.O_RDWR)
    result = _libc.ioctl(device, ctypes.c_ulong(CREATE_VM), ctypes.c_void_p(8))
    return [result, ctypes.get_errno()]


def unknown_ioctls() -> object:
    device = os.open(DEVICE, os.O_RDWR)
    enclave = Enclave()
    return [
        attempt(lambda: fcntl.ioctl(device, ADD_VCPU, bytearray(4))),
        attempt(lambda: fcntl.ioctl(enclave.fd, CREATE_VM, bytearray(8))),
        attempt(lambda: fcntl.ioctl(enclave.fd, 0xAE03, 0)),
    ]


def create_beside_all_cores() -> object:
    """While one enclave has the only core, and when it is closed."""
    enclave = Enclave()
    enclave.add_vcpu()
    meanwhile = attempt(lambda: Enclave().close())
    enclave.close()
    return [meanwhile, attempt(lambda: Enclave().close())]


def hold_enclave() -> object:
    enclave = Enclave()
    time.sleep(60)
    return enclave.slot


def open_device() -> object:
    return attempt(lambda: os.close(os.open(DEVICE, os.O_RDONLY)))


# --- vCPUs ---------------------------------------------------------------------------------------------------


def choose_vcpus(count: int) -> object:
    """The ids that id 0 comes to; an errno, negative, ends the list."""
    enclave = Enclave()
    chosen: list[int] = []
    for _ in range(count):
        failure = attempt(lambda: chosen.append(enclave.add_vcpu()))
        if failure:
            chosen.append(-failure)
            break
    return chosen


def add_vcpus(*ids: int) -> object:
    """Outcomes of adding these to one enclave."""
    enclave = Enclave()
    return [attempt(lambda vcpu=vcpu: enclave.add_vcpu(vcpu)) for vcpu in ids]  # type: ignore[misc]


def take_sibling_of_another(first: int, sibling: int) -> object:
    one, other = Enclave(), Enclave()
    one.add_vcpu(first)
    return [attempt(lambda: other.add_vcpu(sibling)), attempt(lambda: one.add_vcpu(sibling))]


def tie_up_core_from_child(vcpu: int) -> object:
    """A child's attempt fails, and yet the core is taken until the enclave is closed."""
    one, other = Enclave(), Enclave()
    in_the_child = in_child(lambda: attempt(lambda: one.add_vcpu(vcpu)))
    meanwhile = attempt(lambda: other.add_vcpu(vcpu))
    one.close()
    return [in_the_child, meanwhile, attempt(lambda: other.add_vcpu(vcpu))]


def take_core_given_back() -> object:
    """What closing an enclave gives back is there for the very next call."""
    outcomes = []
    for _ in range(20):
        enclave = Enclave()
        outcomes.append(attempt(enclave.add_core))
        enclave.close()
    return outcomes


# --- which process -------------------------------------------------------------------------------------------


def work_from_thread() -> object:
    enclave = Enclave()
    outcomes: list[int] = []
    memory = huge_map(HUGE)

    def work() -> None:
        outcomes.append(attempt(enclave.add_vcpu))
        outcomes.append(attempt(lambda: enclave.add_map(memory)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return outcomes


def work_from_child() -> object:
    enclave = Enclave()
    memory = huge_map(HUGE)
    return [
        in_child(lambda: attempt(enclave.add_vcpu)),
        in_child(lambda: attempt(lambda: enclave.add_map(memory))),
        in_child(lambda: attempt(enclave.load_info)),
    ]


def work_from_receiver() -> object:
    """A process that was there before the enclave, and got its descriptor over a socket."""
    ours, theirs = socket.socketpair()
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        _, descriptors, _, _ = socket.recv_fds(theirs, 1, 1)
        received = object.__new__(Enclave)
        received.fd = descriptors[0]
        os.write(write_end, bytes([attempt(received.add_vcpu), attempt(received.load_info)]))
        os._exit(0)
    enclave = Enclave()
    socket.send_fds(ours, [b"x"], [enclave.fd])
    os.waitpid(child, 0)
    return list(os.read(read_end, 2))


def work_after_exec() -> object:
    """The same process, but not the same memory map."""
    enclave = Enclave()
    os.set_inheritable(enclave.fd, True)
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:-2], "work_on_inherited", json.dumps([enclave.fd])])


def work_on_inherited(fd: int) -> object:
    inherited = object.__new__(Enclave)
    inherited.fd = fd
    return [attempt(inherited.add_vcpu), attempt(inherited.load_info)]


def start_from_child() -> object:
    enclave = complete()
    return [in_child(lambda: attempt(enclave.start)), attempt(enclave.start)]


# --- memory --------------------------------------------------------------------------------------------------


def refuse_sizes_and_addresses() -> object:
    enclave = Enclave()
    memory = huge_map(2 * HUGE)
    address = address_of(memory)
    hole = mmap.mmap(-1, 4 * HUGE)
    above = (address_of(hole) + HUGE) & -HUGE
    ctypes.CDLL(None).munmap(ctypes.c_void_p(above), ctypes.c_size_t(HUGE))
    return {
        "half a page": attempt(lambda: enclave.add_memory(address, MIB)),
        "odd": attempt(lambda: enclave.add_memory(address, HUGE + 4096)),
        "nothing": attempt(lambda: enclave.add_memory(address, 0)),
        "unaligned": attempt(lambda: enclave.add_memory(address + 4096, HUGE)),
        "flags": attempt(lambda: enclave.add_memory(address, HUGE, flags=1)),
        "kernel": attempt(lambda: enclave.add_memory(-(1 << 40) & (2**64 - 1), HUGE)),
        "unmapped": attempt(lambda: enclave.add_memory(above, HUGE)),
        "fine": attempt(lambda: enclave.add_memory(address, 2 * HUGE)),
    }


def refuse_small_pages() -> object:
    enclave = Enclave()
    plain = mmap.mmap(-1, 4 * HUGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    aligned = (address_of(plain) + HUGE - 1) & -HUGE
    plain.write(b"x" * len(plain))
    transparent = mmap.mmap(-1, 4 * HUGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    transparent.madvise(mmap.MADV_HUGEPAGE)
    transparent.write(b"x" * len(transparent))
    transparent_aligned = (address_of(transparent) + HUGE - 1) & -HUGE
    return [
        attempt(lambda: enclave.add_memory(aligned, HUGE)),
        attempt(lambda: enclave.add_memory(transparent_aligned, HUGE)),
    ]


def accept_untouched_and_shared() -> object:
    enclave = Enclave()
    memory_file = os.memfd_create("shared", os.MFD_HUGETLB)
    os.ftruncate(memory_file, HUGE)
    shared = mmap.mmap(memory_file, HUGE, mmap.MAP_SHARED)
    return [attempt(lambda: enclave.add_map(huge_map(2 * HUGE))), attempt(lambda: enclave.add_map(shared))]


def overlap() -> object:
    enclave = Enclave()
    memory = huge_map(4 * HUGE)
    address = address_of(memory)
    enclave.add_memory(address + HUGE, HUGE)
    outcomes = {
        "same": attempt(lambda: enclave.add_memory(address + HUGE, HUGE)),
        "around": attempt(lambda: enclave.add_memory(address, 3 * HUGE)),
        "tail": attempt(lambda: enclave.add_memory(address, 2 * HUGE)),
        "beside": attempt(lambda: enclave.add_memory(address + 2 * HUGE, HUGE)),
    }
    ctypes.CDLL(None).munmap(ctypes.c_void_p(address + HUGE), ctypes.c_size_t(HUGE))
    outcomes["after munmap"] = attempt(lambda: enclave.add_memory(address + HUGE, HUGE))
    # The same pages in another enclave are no overlap: every enclave has its own list.
    return outcomes


def register_twice() -> object:
    enclave = Enclave()
    memory = huge_map(HUGE)
    return [attempt(lambda: enclave.add_map(memory)) for _ in range(2)]


def register_one() -> object:
    enclave = Enclave()
    return attempt(lambda: enclave.add_map(huge_map(HUGE)))


def register_without_pages() -> object:
    """More memory than there is: refused by mmap, or, with MAP_NORESERVE, by the registration."""
    enclave = Enclave()
    size = 64 << 30
    reserved = attempt(lambda: huge_map(size))
    unreserved = huge_map(size, mmap.MAP_PRIVATE | MAP_NORESERVE)
    return [reserved, attempt(lambda: enclave.add_map(unreserved))]


def register_parts_of_gigantic_page() -> object:
    """2 MiB inside a page of 1 GiB, and its first 2 MiB."""
    enclave = Enclave()
    memory = huge_map(1 << 30, mmap.MAP_PRIVATE | MAP_HUGE_1GB)
    address = address_of(memory)
    inside = attempt(lambda: enclave.add_memory(address + HUGE, HUGE))
    return [inside, attempt(lambda: enclave.add_memory(address, HUGE))]


def place_image_beside_gigantic_page(path: str) -> object:
    """An image that begins in pages of 2 MiB, ends in one of 1 GiB."""
    enclave = Enclave()
    enclave.add_core()
    with open(path, "rb") as file:
        image = file.read()
    small, large = huge_map(6 * HUGE), huge_map(1 << 30, mmap.MAP_PRIVATE | MAP_HUGE_1GB)
    room = len(small) - enclave.load_info()
    small[len(small) - room :] = image[:room]
    large[: len(image) - room] = image[room:]
    enclave.add_map(small)
    enclave.add_map(large)
    return enclave.start()


def place_image(path: str, *sizes_mib: int) -> object:
    """Write a file at the load offset of regions of these sizes, register them in order, start."""
    enclave = Enclave()
    enclave.add_core()
    with open(path, "rb") as file:
        image = file.read()
    offset = enclave.load_info()
    begin = 0
    # The first region lies above the others: the order of registration counts, not that of addresses.
    for memory in reversed([huge_map(size * MIB) for size in sizes_mib]):
        for position in range(begin, begin + len(memory), HUGE):
            part = image[max(0, position - offset) : max(0, position - offset + HUGE)]
            if part:
                memory[position - begin : position - begin + len(part)] = part
        enclave.add_map(memory)
        begin += len(memory)
    enclave.start()
    return enclave.poll(1.0) if sizes_mib else 0


def write_after_fork(flags: int, image_hex: str) -> object:
    """The hazard: memory registered, then a fork, then written."""
    enclave = Enclave()
    enclave.add_core()
    memory = huge_map(ENOUGH, flags)
    enclave.add_map(memory)
    stop_r, stop_w = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(stop_w)
        os.read(stop_r, 1)
        os._exit(0)
    image = bytes.fromhex(image_hex)
    memory[8 * MIB : 8 * MIB + len(image)] = image
    enclave.start()
    os.close(stop_w)
    os.waitpid(child, 0)
    return None


# --- starting ------------------------------------------------------------------------------------------------


def order_of_checks() -> object:
    """Each start has one fault less than the one before."""
    enclave = Enclave()
    memory = huge_map(ENOUGH)
    outcomes = [attempt(lambda: enclave.start(cid=2, flags=2)), attempt(lambda: enclave.start(cid=2))]
    outcomes.append(attempt(enclave.start))
    enclave.add_memory(address_of(memory), HUGE)
    outcomes.append(attempt(enclave.start))
    enclave.add_memory(address_of(memory) + HUGE, ENOUGH - HUGE)
    outcomes.append(attempt(enclave.start))
    enclave.add_vcpu()
    outcomes.append(attempt(enclave.start))
    enclave.add_vcpu()
    outcomes.append(attempt(enclave.start))
    return outcomes


def refuse_cids(*cids: int) -> object:
    enclave = Enclave()
    return [attempt(lambda cid=cid: enclave.start(cid=cid)) for cid in cids]  # type: ignore[misc]


def start_twice(*cids: int) -> object:
    """Two enclaves; the CIDs that they got, or errnos, negative."""
    outcomes = []
    kept = []
    for cid in cids:
        enclave = complete()
        kept.append(enclave)
        try:
            outcomes.append(enclave.start(cid))
        except OSError as exc:
            outcomes.append(-(exc.errno or 0))
    return outcomes


def every_ioctl_once_running() -> object:
    enclave = complete()
    enclave.start()
    return _every_ioctl(enclave)


def every_ioctl_once_exited() -> object:
    enclave = complete()
    enclave.start()
    hang_up = enclave.poll(10.0)
    return [hang_up, *_every_ioctl(enclave)]


def _every_ioctl(enclave: Enclave) -> list[int]:
    memory = huge_map(HUGE)
    return [
        attempt(enclave.add_vcpu),
        attempt(enclave.load_info),
        attempt(lambda: enclave.add_map(memory)),
        attempt(enclave.start),
    ]


def start_again_after_device_error() -> object:
    enclave = complete()
    return [attempt(enclave.start), attempt(enclave.start)]


def load_info() -> object:
    enclave = Enclave()
    return [enclave.load_info(), *(attempt(lambda flags=flags: enclave.load_info(flags)) for flags in (0, 2, 3))]  # type: ignore[misc]


# --- exit and close ------------------------------------------------------------------------------------------


def poll_an_exit() -> object:
    """Before, and then again and again after the exit, with and without asking for events."""
    enclave = complete()
    enclave.start()
    wanted = select.POLLIN | select.POLLOUT | select.POLLPRI
    return [enclave.poll(), enclave.poll(10.0), enclave.poll(0, wanted), enclave.poll()]


def close_last_of_copies() -> object:
    """Whether a core is taken (257) while copies of the descriptor are closed one after the other."""
    other = Enclave()
    enclave = Enclave()
    enclave.add_vcpu(1)
    copy = os.dup(enclave.fd)
    ours, theirs = socket.socketpair()
    socket.send_fds(ours, [b"x"], [enclave.fd])
    outcomes = []

    def look() -> None:
        outcomes.append(attempt(lambda: other.add_vcpu(1)))

    enclave.close()
    look()
    os.close(copy)
    look()
    # One is still under way in the socket.
    theirs.close()
    ours.close()
    look()
    return outcomes


def run_until_killed() -> object:
    """Starts an enclave and says so by its heartbeat listener being there; never returns."""
    enclave = complete()
    enclave.start()
    time.sleep(60)
    return None


def leave_to_child() -> object:
    """The owner ends, a child of its own keeps the descriptor for as long as its standard input is open."""
    enclave = complete()
    enclave.start()
    if os.fork() == 0:
        os.closerange(0, 3)
        time.sleep(60)
        os._exit(0)
    return os.getpid()


# --- vsock ---------------------------------------------------------------------------------------------------


def take_heartbeat() -> object:
    listener = heartbeat_listener()
    enclave = complete()
    cid = enclave.start()
    peer_cid, peer_port = answer_heartbeat(listener)
    return {"cid": cid, "peer_cid": peer_cid, "peer_port_is_high": peer_port > 1023, "poll": enclave.poll(0.3)}


def take_heartbeat_before_start_returns() -> object:
    """The beat must be there when the ioctl returns."""
    listener = heartbeat_listener()
    listener.setblocking(False)
    enclave = complete()
    before = attempt(listener.accept)
    enclave.start()
    peer, address = listener.accept()
    peer.setblocking(False)
    return [before, peer.recv(1).hex(), address[0]]


def describe_sockets() -> object:
    listener = heartbeat_listener()
    enclave = complete()
    cid = enclave.start(flags=1)
    peer, address = listener.accept()
    peer.sendall(peer.recv(1))
    adopted = socket.socket(fileno=os.dup(listener.fileno()))
    adopted_peer = socket.socket(fileno=peer.detach())
    return {
        "family": adopted.family == socket.AF_VSOCK,
        "listener": listener.getsockname(),
        "no peer": attempt(listener.getpeername),
        "peer": list(adopted_peer.getpeername()) == list(address),
        "peer cid": adopted_peer.getpeername()[0] == cid,
        "peer name": adopted_peer.getsockname(),
        "local cid": _local_cid(listener.fileno()),
    }


def _local_cid(fd: int) -> int:
    argument = bytearray(4)
    fcntl.ioctl(fd, 0x7B9, argument)
    return int.from_bytes(argument, "little")


def bind_rules() -> object:
    def bound(cid: int, port: int) -> int:
        sock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        kept.append(sock)
        return attempt(lambda: sock.bind((cid, port)))

    kept: list[socket.socket] = []
    outcomes = {
        "any": bound(socket.VMADDR_CID_ANY, 9000),
        "again": bound(socket.VMADDR_CID_ANY, 9000),
        "own cid": bound(3, 9000),
        "own cid, other port": bound(3, 9001),
        "another's cid": bound(16, 9002),
        "hypervisor": bound(0, 9003),
        "twice": attempt(lambda: kept[0].bind((socket.VMADDR_CID_ANY, 9004))),
        "datagrams": attempt(lambda: socket.socket(socket.AF_VSOCK, socket.SOCK_DGRAM)),
    }
    kept[0].close()
    outcomes["after close"] = bound(socket.VMADDR_CID_ANY, 9000)
    return outcomes


def bind_and_listen() -> object:
    return attempt(lambda: heartbeat_listener().close())


def wait_for_connections() -> object:
    """accept that does not wait, that waits with select, and that simply waits."""
    listener = heartbeat_listener()
    listener.setblocking(False)
    empty = attempt(listener.accept)
    enclave = complete()
    enclave.start()
    readable, _, _ = select.select([listener], [], [], 10)
    peer, _ = listener.accept()
    inherited = peer.getblocking() and os.get_blocking(peer.fileno())
    peer.sendall(peer.recv(1))
    listener.setblocking(True)
    second = complete()
    threading.Timer(0.2, second.start).start()
    cid, _ = answer_heartbeat(listener)
    return [empty, bool(readable), inherited, cid]


def read_console(debug: int) -> object:
    """The console to its end, or the errno."""
    enclave = complete()
    cid = enclave.start(flags=debug)
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as sock:
        sock.settimeout(5)
        failure = attempt(lambda: sock.connect((0, 10000 + cid)))
        if failure:
            return failure
        text = b""
        while part := sock.recv(4096):
            text += part
    return text.decode()


def connect_without_waiting(cid: int, port: int) -> object:
    """Outcome of connect, what poll says, SO_ERROR twice, whether there is a peer."""
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as sock:
        sock.setblocking(False)
        outcome = attempt(lambda: sock.connect((cid, port)))
        poll = select.poll()
        poll.register(sock, select.POLLOUT)
        writable = bool(poll.poll(1000))
        errors = [sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) for _ in range(2)]
        return [outcome, writable, errors, attempt(sock.getpeername)]


def connect_and_wait(cid: int, port: int) -> object:
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as sock:
        return attempt(lambda: sock.connect((cid, port)))


def share_listener(processes: int) -> object:
    """As many children, one listener: each starts an enclave and takes beats; the first to have the port is killed.

    Returns how many beats were taken, by whoever.
    """
    listener = heartbeat_listener()
    read_end, write_end = os.pipe()
    children = []
    for _ in range(processes):
        child = os.fork()
        if child == 0:
            enclave = complete()
            enclave.start()
            while True:
                cid, _ = answer_heartbeat(listener)
                os.write(write_end, bytes([cid]))
        children.append(child)
    listener.close()
    os.close(write_end)
    os.kill(children[0], signal.SIGKILL)
    seen: set[int] = set()
    while len(seen) < processes - 1 and (data := os.read(read_end, 1)):
        seen.update(data)
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return len(seen)


def hand_over_listener() -> object:
    """A listener that an older process gets over a unix socket, after whose first holder ended."""
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        first = heartbeat_listener()
        socket.send_fds(theirs, [b"x"], [first.fileno()])
        os._exit(0)
    _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
    os.waitpid(child, 0)
    listener = socket.socket(fileno=descriptors[0])
    enclave = complete()
    cid = enclave.start()
    return [listener.getsockname(), answer_heartbeat(listener)[0] == cid]


# --- faults --------------------------------------------------------------------------------------------------


def add_vcpu_under_signals() -> object:
    """A call that takes its time while signals rain, with a handler that asks for no restart."""
    caught = []
    signal.signal(signal.SIGALRM, lambda number, _: caught.append(number))
    enclave = Enclave()
    signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
    vcpu = enclave.add_vcpu()
    signal.setitimer(signal.ITIMER_REAL, 0)
    return [vcpu, bool(caught)]


def create_when_table_is_full() -> object:
    """EMFILE, and no enclave left behind."""
    import resource

    device = os.open(DEVICE, os.O_RDONLY)
    with contextlib.ExitStack() as undo:
        resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
        with contextlib.suppress(OSError):
            while True:
                undo.callback(os.close, os.dup(device))
        return attempt(lambda: fcntl.ioctl(device, CREATE_VM, bytearray(8)))


# --- files ---------------------------------------------------------------------------------------------------


def read_files(*paths: str) -> object:
    found: dict[str, str | int] = {}
    for path in paths:
        try:
            with open(path) as file:
                found[path] = file.read()
        except OSError as exc:
            found[path] = exc.errno or -1
    return found


def look_at_files() -> object:
    import stat

    status = os.stat(DEVICE)
    cpus = [name for name in os.listdir("/sys/devices/system/cpu") if name[3:].isdecimal()]
    top = os.open("/sys/devices/system/cpu", os.O_RDONLY | os.O_DIRECTORY)
    relative = os.open("cpu3/topology/thread_siblings_list", os.O_RDONLY, dir_fd=top)
    return {
        "is a device": stat.S_ISCHR(status.st_mode),
        "major": os.major(status.st_rdev),
        "mode": oct(stat.S_IMODE(status.st_mode)),
        "lstat": os.lstat(DEVICE).st_rdev == status.st_rdev,
        "readable": os.access(DEVICE, os.R_OK | os.W_OK),
        "opened is a device": stat.S_ISCHR(os.fstat(os.open(DEVICE, os.O_RDONLY)).st_mode),
        "cpus": len(cpus),
        "relative": os.read(relative, 100).decode(),
        "node": os.readlink("/sys/devices/system/cpu/cpu5/node0"),
        "pages": os.path.exists("/sys/devices/system/node/node0/hugepages/hugepages-2048kB/free_hugepages"),
        "write": attempt(lambda: os.open("/sys/module/nitro_enclaves/parameters/ne_cpus", os.O_WRONLY)),
        "absent": attempt(lambda: os.stat("/sys/module/nitro_enclaves/absent")),
        "others": os.path.exists("/etc/passwd") and open("/proc/self/comm").read().strip() != "",
    }


def status_and_streams(status: int) -> object:
    os.write(1, b"out")
    os.write(2, b"err")
    os._exit(status)


def open_in_grandchild() -> object:
    """Children inherit the machine, also those that exec."""
    import subprocess

    done = subprocess.run(["cat", "/sys/module/nitro_enclaves/parameters/ne_cpus"], stdout=subprocess.PIPE, check=True)
    return done.stdout.decode()


def leave_behind(delay_s: float) -> object:
    """A child that opens the device later."""
    if os.fork() == 0:
        time.sleep(delay_s)
        os.close(os.open(DEVICE, os.O_RDONLY))
        os._exit(0)
    return None


def open_many(count: int) -> object:
    """Seconds for so many opens and closes of an ordinary file."""
    begin = time.monotonic()
    for _ in range(count):
        os.close(os.open("/etc/passwd", os.O_RDONLY))
    return time.monotonic() - begin


# --- an image that boots ------------------------------------------------------------------------------------------


def _load(path: str, size: int) -> Enclave:
    """An enclave with an image in its only region, ready to start."""
    enclave = Enclave()
    enclave.add_core()
    offset = enclave.load_info()
    memory = huge_map(size)
    with open(path, "rb") as file:
        image = file.read()
    memory[offset : offset + len(image)] = image
    enclave.add_map(memory)
    return enclave


def _read_lines(console: socket.socket, last: str) -> list[str]:
    """Lines up to that one, or to the end."""
    lines = []
    with console.makefile("r", errors="replace") as text:
        for line in text:
            lines.append(line.strip())
            if line.strip() == last:
                break
    return lines


def live_to_the_end(path: str, size: int) -> object:
    """Boots an image in debug mode, answers its heartbeat, reads its console until it hangs up."""
    listener = heartbeat_listener()
    enclave = _load(path, size)
    cid = enclave.start(flags=1)
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as console:
        console.connect((0, 10000 + cid))
        peer_cid, _ = answer_heartbeat(listener)
        lines = _read_lines(console, "")
    return {"lines": lines, "beat": peer_cid == cid, "poll": enclave.poll(10)}


def echo_with(path: str, size: int, port: int) -> object:
    """Boots an image that echoes what comes to a port, and uses it; also a port where nobody is."""
    listener = heartbeat_listener()
    enclave = _load(path, size)
    cid = enclave.start(flags=1)
    console = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    console.connect((0, 10000 + cid))
    answer_heartbeat(listener)
    _read_lines(console, "ready")
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as sock:
        sock.settimeout(10)
        sock.connect((cid, port))
        sock.sendall(b"there and back")
        back = sock.recv(100).decode()
    return [back, connect_and_wait(cid, port + 1)]


def boot_without_listener(path: str, size: int) -> object:
    """Boots an image whose heartbeat nobody takes."""
    enclave = _load(path, size)
    enclave.start()
    return enclave.poll(40)
