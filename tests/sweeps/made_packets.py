"""Network packets with their protocols, made as RFCs say, in the form of system A: words of two bytes in hex."""

import csv
import random
import struct
from pathlib import Path

PROTOCOLS = ("DNS", "HTTP", "TLS")


def write_packets(path: Path, count: int, *, seed: int = 0, words_of_payload: int | None = None) -> Path:
    """A CSV with the columns text and protocol; the protocols take turns.

    Args:
        words_of_payload: Number of words in the text, from a random place of the payload, where no port gives away the
            answer. None: the packet from its first header on.
    """
    rng = random.Random(seed)
    with open(path, "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "protocol"])
        for number in range(count):
            protocol = PROTOCOLS[number % len(PROTOCOLS)]
            packet = _packet(protocol, rng)
            first = 2 * rng.randrange(20, 30)
            shown = packet[:64] if words_of_payload is None else packet[first : first + 2 * words_of_payload]
            rows.writerow([shown.hex(" ", 2), protocol])
    return path


def _packet(protocol: str, rng: random.Random) -> bytes:
    """An IPv4 packet without options: RFC 791 around RFC 768 or 793."""
    payload = {"DNS": _dns, "HTTP": _http, "TLS": _tls}[protocol](rng)
    port = rng.randrange(1024, 65536)
    if protocol == "DNS":
        inner, number = struct.pack(">HHHH", port, 53, 8 + len(payload), 0) + payload, 17
    else:
        to = {"HTTP": 80, "TLS": 443}[protocol]
        inner = struct.pack(">HHIIBBHHH", port, to, rng.getrandbits(32), rng.getrandbits(32), 80, 24, 8192, 0, 0)
        inner, number = inner + payload, 6
    addresses = bytes([10, 0, 0, rng.randrange(1, 255)]) + rng.randbytes(4)
    header = struct.pack(">BBHHHBBH", 69, 0, 20 + len(inner), rng.getrandbits(16), 0x4000, 64, number, 0)
    return header + addresses + inner


def _dns(rng: random.Random) -> bytes:
    labels = [rng.choice(["www", "mail", "api"]), rng.choice(["example", "ntop", "kernel"]), rng.choice(["org", "com"])]
    name = b"".join(bytes([len(label)]) + label.encode() for label in labels) + b"\0"
    return struct.pack(">HHHHHH", rng.getrandbits(16), 0x0100, 1, 0, 0, 0) + name + struct.pack(">HH", 1, 1)


def _http(rng: random.Random) -> bytes:
    return f"GET /{rng.choice('abcdef')}{rng.randrange(100)} HTTP/1.1\r\nHost: www.ntop.org\r\n\r\n".encode()


def _tls(rng: random.Random) -> bytes:
    body = struct.pack(">H", 0x0303) + rng.randbytes(32) + b"\0"
    hello = b"\1" + len(body).to_bytes(3, "big") + body
    return b"\x16\3\1" + struct.pack(">H", len(hello)) + hello
