#!/usr/bin/env python3
"""Writes the inputs with which the corpora of the targets below began: seeds.py [FOLDER].

What a fuzzer found later is kept beside them, under the SHA-1 of its contents. The other corpora began with documents of real
registries; that of `tar` holds besides archives that were made by hand, each with one oddity that its name tells.
"""
import gzip
import hashlib
import io
import os
import pathlib
import struct
import subprocess
import sys
import tarfile
import tempfile
import zlib

FOLDER = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent / "corpus")
TEXT = b"what the sea gives back, it gives back in order\n" * 40


def keep(target: str, name: str, data: bytes) -> None:
    folder = FOLDER / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)


def decompress() -> None:
    def member(flags: int, extra: bytes, body: bytes = TEXT, header_crc: bool = False, crc: int | None = None, size: int | None = None) -> bytes:
        head = struct.pack("<3sBIBB", b"\x1f\x8b\x08", flags, 0, 0, 3) + extra
        if header_crc:
            head += struct.pack("<H", zlib.crc32(head) & 0xFFFF)
        raw = zlib.compressobj(9, zlib.DEFLATED, -15)
        tail = struct.pack("<II", zlib.crc32(body) if crc is None else crc, len(body) if size is None else size)
        return head + raw.compress(body) + raw.flush() + tail

    plain = gzip.compress(TEXT, mtime=0)
    field = struct.pack("<H", 6) + b"AB\x02\x00xy"
    seeds = {
        "gzip": plain,
        "gzip-members": plain + plain + gzip.compress(b"", mtime=0),
        "gzip-zeros-after": plain + bytes(600),
        "gzip-garbage-after": plain + b"more",
        "gzip-garbage-after-zeros": plain + bytes(9) + b"more",
        "gzip-cut": plain[:40],
        "gzip-cut-trailer": plain[:-3],
        "gzip-cut-header": plain[:6],
        "gzip-fields": member(4 | 8 | 16, field + b"name\0comment\0"),
        "gzip-header-checksum": member(2 | 8, b"name\0", header_crc=True),
        "gzip-header-checksum-bad": member(2, b"\0\0"),
        "gzip-reserved-flags": member(0xE0, b""),
        "gzip-crc-bad": member(0, b"", crc=1),
        "gzip-size-bad": member(0, b"", size=1),
        "gzip-deflate-bad": plain[:12] + b"\xff\xff\xff\xff" + plain[16:],
        "gzip-method": b"\x1f\x8b\x07" + plain[3:],
        "gzip-second-member-bad": plain + b"\x1f\x8c" + plain[2:],
        "gzip-long": gzip.compress(bytes(700_000), mtime=0),
        "gzip-stored": gzip.compress(hashlib.sha256(TEXT).digest() * 4, compresslevel=0, mtime=0),
        "xz": b"\xfd7zXZ\0\0\x04\xe6\xd6",
        "bzip2": b"BZh91AY&SY\0\0",
        "plain": TEXT,
        "short": b"ab",
    }

    def zstd(data: bytes, *options: str) -> bytes:
        return subprocess.run(["zstd", "-q", "-c", *options], input=data, stdout=subprocess.PIPE, check=True).stdout

    frame = zstd(TEXT)
    skippable = struct.pack("<II", 0x184D2A53, 5) + b"12345"
    magic = b"\x28\xb5\x2f\xfd"
    seeds |= {
        "zstd": frame,
        "zstd-frames": frame + skippable + frame,
        "zstd-skippable": skippable + frame,
        "zstd-cut": frame[:-6],
        "zstd-corrupt": frame[:12] + b"\xff\xff" + frame[14:],
        "zstd-checksum-bad": zstd(TEXT, "--check")[:-1] + b"\0",
        "zstd-garbage-after": frame + b"more",
        "zstd-long": zstd(bytes(700_000)),
        "zstd-window": magic + bytes([0x00, 0xA8]) + bytes(12),
        "zstd-window-single-8": magic + bytes([0xE0]) + struct.pack("<Q", 1 << 40) + bytes(4),
        "zstd-window-single-4-dictionary": magic + bytes([0xA3]) + bytes(4) + struct.pack("<I", 1 << 31) + bytes(4),
        "zstd-dictionary": magic + bytes([0x21, 7, 10]) + bytes(12),
    }
    for name, data in seeds.items():
        keep("decompress", name, data)


def dns() -> None:
    question = b"\x08registry\x07example\x03com\0\0\x01\0\x01"
    own = b"\xc0\x0c"

    def message(flags: int, answers: list[bytes], count: int | None = None, asked: bytes = question, ident: bytes = b"\x12\x34") -> bytes:
        return ident + struct.pack(">HHHHH", flags, 1, len(answers) if count is None else count, 0, 0) + asked + b"".join(answers)

    def record(owner: bytes, kind: int, data: bytes, class_: int = 1, length: int | None = None) -> bytes:
        return owner + struct.pack(">HHIH", kind, class_, 60, len(data) if length is None else length) + data

    address = record(own, 1, b"\xc0\0\x02\x01")
    at = 12 + len(question)
    seeds = {
        "address": message(0x8180, [address]),
        "addresses": message(0x8180, [record(own, 1, bytes([192, 0, 2, last])) for last in range(40)]),
        "alias": message(0x8180, [record(own, 5, b"\x03cdn\xc0\x15"), record(b"\x03CDN" + b"\xc0\x15", 1, b"\xc0\0\x02\x02")]),
        "alias-of-itself": message(0x8180, [record(own, 5, own)]),
        "alias-forward": message(0x8180, [record(own, 5, bytes([0xC0, at + 20]))]),
        "alias-later": message(0x8180, [record(b"\x01x\xc0\x15", 1, b"\xc0\0\x02\x03"), record(own, 5, b"\x01x\xc0\x15")]),
        "ipv6": message(0x8180, [record(own, 28, b"\x20\x01\x0d\xb8" + bytes(12))]),
        "short-address": message(0x8180, [record(own, 1, b"\xc0\0\x02")]),
        "other-class": message(0x8180, [record(own, 1, b"\xc0\0\x02\x01", class_=3)]),
        "no-such-name": message(0x8183, []),
        "failed": message(0x8182, []),
        "truncated": message(0x8380, []),
        "none": message(0x8180, []),
        "many": message(0x8180, [address], count=999),
        "cut": message(0x8180, [address])[:-2],
        "cut-header": message(0x8180, [])[:9],
        "length-beyond": message(0x8180, [record(own, 1, b"\xc0", length=900)]),
        "other-question": message(0x8180, [address], asked=b"\x05other\0\0\x01\0\x01"),
        "other-type": message(0x8180, [address], asked=question[:-3] + b"\x1c\0\x01"),
        "other-id": message(0x8180, [address], ident=b"\x12\x35"),
        "a-question": message(0x0100, []),
        "opcode": message(0x8980, []),
        "pointer-loop": message(0x8180, [address], asked=b"\xc0\x0c\0\x01\0\x01"),
        "pointer-forward": message(0x8180, [record(b"\xc0\xff", 1, b"\xc0\0\x02\x01")]),
        "label-long": message(0x8180, [record(b"\x40" + b"a" * 64 + b"\0", 1, b"\xc0\0\x02\x01")]),
        "name-long": message(0x8180, [record((b"\x3f" + b"a" * 63) * 4 + b"\0", 1, b"\xc0\0\x02\x01")]),
    }
    for name, data in seeds.items():
        keep("dns", name, data)


def headers() -> None:
    seeds = [
        'Bearer realm="https://auth.example.com/token",service="registry.example.com",scope="repository:app:pull"',
        'Basic realm="registry"', "Basic", "basic realm=plain", 'Basic realm="a", Bearer realm="https://b/t", service=c',
        'Bearer realm="quo\\"ted\\\\"', 'Bearer realm="never ends', 'Bearer realm="ends in \\', "Bearer realm=", "Bearer =x", "=x", ", ,\tBasic",
        "Bearer " + ", ".join(f"p{number}=v" for number in range(20)), ", ".join(f"S{number} a=b" for number in range(12)),
        'Negotiate YIIabc==', "Bearer\trealm = \"x\"", "é realm=x", "bytes 0-9/10", "bytes 5-9/*", "bytes  0-0/1", "bytes 9-5/10", "bytes 0-9/9",
        "bytes */10", "bytes 0-/10", "bytes -1/10", "bytes 0-99999999999999999999/1", "bytes +1-2/3", "items 0-1/2",
    ]
    for number, text in enumerate(seeds):
        keep("headers", f"{number:02}", text.encode())


def addresses() -> None:
    seeds = [
        "https://r.example/v2/a/blobs/x?y=1\nhttps://cdn.example/z?sig=%2F", "https://r.example/a?b\n//cdn.example/z", "https://r.example/a/b?c\n/z?a=b:c",
        "https://r.example/a/b?c\nz", "https://r.example/a/b?c\n?q", "https://r.example/a\n/z#part", "https://r.example\n", "http://R.Example:80/\nHTTP://a",
        "http://[::1]:5000/x\nhttps://[2001:db8::1]/", "http://[x]/", "http://[::1]x/", "http://127.0.0.1:5000/v2/", "https://a:99999/", "https://a:x/", "https://a:/b",
        "https://u:p@a/", "ftp://a/", "https://", "https://a?b", "https://a#b", "https://a/\njavascript:x", "https://a/\nhttps://a\r\nb/", "https://a/\n/\u00e9",
        "https://localhost/\nhttp://b.localhost./", "https://a_b-c.example/\nhttp:///", "https://a/ b", "https://" + "a" * 300 + "/", "https://a/" + "b" * 9000,
        "https://a/\n" + "b" * 9000, "https://a*b/", "/relative", "https://a/%zz\n%", "https://a/\n..//../x", "https://a/\n:b",
    ]
    for number, text in enumerate(seeds):
        keep("addresses", f"{number:02}", text.encode())


def log() -> None:
    block = 4096
    digest = b"\x01" + bytes(range(32))
    digest512 = b"\x02" + bytes(range(64))
    no_digest = b"\0"
    key = digest + no_digest
    stacked = digest + digest
    transaction = struct.pack("<QQ", 3, 4)

    def text(value: bytes) -> bytes:
        return struct.pack("<I", len(value)) + value

    def container(desired: int) -> bytes:
        return text(b"c" * 64) + text(b"web") + digest + bytes([desired])

    numbers = struct.pack("<QQQQQ", 1, 2, 3, 4, 5)
    bodies = {
        "opened": (1, b""), "closed": (2, b""), "base-end": (3, struct.pack("<Q", 0)),
        "blob": (16, digest512 + struct.pack("<Q", 7) + transaction), "blob-removed": (17, digest),
        "layer": (18, stacked + digest + numbers + b"\x01"), "layer-flag": (18, key + digest + numbers + b"\x02"),
        "layer-removed": (19, key), "image": (20, digest + no_digest + struct.pack("<I", 2) + key + stacked),
        "image-layers": (20, digest + digest + struct.pack("<I", 1 << 30)), "image-removed": (21, digest),
        "tag": (22, text(b"docker.io/library/app:1") + digest + struct.pack("<q", -1)), "tag-removed": (23, text(b"docker.io/library/app:1")),
        "tag-no-text": (23, text(b"\xff\xfe")), "pull": (24, digest + struct.pack("<I", 1) + digest + struct.pack("<Q", 9) + key),
        "pull-ended": (25, digest), "container": (26, container(1) + transaction), "container-changed": (27, container(2)),
        "container-created": (27, container(0)), "container-unknown": (27, container(7)), "container-removed": (28, text(b"c" * 64)),
        "unknown": (99, b"x"), "digest-none": (21, b"\0"), "digest-unknown": (21, b"\x09"), "rest": (21, digest + b"x"), "short": (21, digest[:9]),
        "old-blob": (16, digest + struct.pack("<Q", 7) + transaction),
    }

    def record(sequence: int, kind: int, body: bytes, version: int = 1) -> bytes:
        return struct.pack("<QHHI", sequence, kind, version, len(body)) + body

    def batch(first: int, records: list[bytes], synced: int | None = None, count: int | None = None, rest: bytes = b"",
              padded: bool = True) -> bytes:
        payload = b"".join(records) + rest
        head = MAGIC + struct.pack("<IQQI4x", 64 + len(payload), first, first - 1 if synced is None else synced, len(records) if count is None else count)
        return (head + bytes(32) + payload).ljust(-(-(64 + len(payload)) // block) * block if padded else 0, b"\0")

    source = (pathlib.Path(__file__).parent.parent / "store/src/wal.rs").read_text()
    MAGIC = source.split("BATCH_MAGIC: [u8; 4] = *b\"")[1][:4].encode()
    for name, (kind, body) in bodies.items():
        keep("log", name, b"\0" + batch(1, [record(1, kind, body)], padded=False))
    good = [bodies[name] for name in ("opened", "blob", "old-blob", "layer", "image", "tag", "pull", "container", "container-changed")]
    gone = [bodies[name] for name in ("pull-ended", "tag-removed", "image-removed", "layer-removed", "blob-removed", "container-removed", "closed")]
    life = [record(sequence, *what) for sequence, what in enumerate(good + gone, 1)]
    count = len(good)
    keep("log", "life", b"\0" + batch(1, life[:count]) + batch(count + 1, life[count:]))
    base = [record(number, *what) for number, what in enumerate(good[1:], 1)]
    end = record(0, 3, struct.pack("<Q", len(base)))
    keep("log", "base", b"\1" + batch(1, base + [end]) + batch(1, [record(1, 1, b"")]))
    keep("log", "base-two-batches", b"\1" + batch(1, base[:3]) + batch(1, base[3:] + [end]))
    keep("log", "base-lacks", b"\1" + batch(1, base[1:] + [end]))
    keep("log", "base-no-end", b"\1" + batch(1, base))
    first = batch(1, [record(1, 1, b"")])
    keep("log", "torn", b"\0" + first + b"x" * 700)
    keep("log", "torn-zeros", b"\0" + first + bytes(2 * block))
    keep("log", "damage", b"\0" + first + b"x" * block + batch(3, [record(3, 2, b"")], synced=2))
    keep("log", "torn-later", b"\0" + first + b"x" * block + batch(3, [record(3, 2, b"")], synced=1))
    keep("log", "sequence-of-batch", b"\0" + batch(5, [record(5, 1, b"")]))
    keep("log", "sequence-of-record", b"\0" + batch(1, [record(2, 1, b"")]))
    keep("log", "version", b"\0" + batch(1, [record(1, 1, b"", version=2)]))
    keep("log", "count-too-large", b"\0" + batch(1, [record(1, 1, b"")], count=3))
    keep("log", "count-huge", b"\0" + batch(1, [record(1, 1, b"")], count=0xFFFFFFFF))
    keep("log", "rest-of-batch", b"\0" + batch(1, [record(1, 1, b"")], rest=b"xyz"))
    keep("log", "record-ends-early", b"\0" + batch(1, [struct.pack("<QHHI", 1, 23, 1, 5000) + b"x"]))
    keep("log", "length-small", b"\0" + MAGIC + struct.pack("<I", 9) + bytes(block))
    keep("log", "length-large", b"\0" + MAGIC + struct.pack("<I", 0x7FFFFFFF) + bytes(block))


def users() -> None:
    passwd = b"\nroot:x:0:0:root:/root:/bin/sh\n1000:x:0:0:trap:/trap:/bin/sh\nann:x:1001:100:Ann:/home/ann:/bin/sh\nbad:x:5:5::/ho\x07me:\n# c\nshort:x\nrel:x:7:7::home:\n:x:1:1::/:\nbig:x:4294967296:1::/:"
    group = b"\n--\nroot:x:0:\nusers:x:100:\naudio:x:29:ann,bob\nvideo:x:44:bob, ann\nhuge:x:4294967296:ann\nalone:x:9\nx"
    heads = ["", "ann", "ann\taudio\t7", "1001", "1001\tnone", "ann:audio", "ann:4000", "ann:", ":audio", "1000", "4294967296", "-1", "2147483648", "2147483647",
             "1000:4294967296", "+5", "0x0", "nobody", "ann:none", "bad", "rel", "big", "short", "4000", "ann:video\tvideo\troot", "+", "\t-3"]
    for number, head in enumerate(heads):
        keep("users", f"{number:02}", head.encode() + passwd + group)
    keep("users", "no-files", b"0")
    keep("users", "no-text", b"\xff\n")


def log_lines() -> None:
    def line(log: str = "text\\n", stream: str = "stdout", time: str = "2026-01-02T03:04:05.000000006Z") -> bytes:
        return f'{{"log":"{log}","stream":"{stream}","time":"{time}"}}\n'.encode()

    times = ["2026-01-02T03:04:05Z", "2026-01-02t03:04:05z", "2026-01-02 03:04:05.1+05:30", "2026-12-31T23:59:60.999999999-23:59", "2024-02-29T00:00:00Z", "0000-01-01T00:00:00+23:59",
             "9999-12-31T23:59:59-23:59", "1969-12-31T23:59:59.5Z", "2026-13-02T03:04:05Z", "2026-01-32T03:04:05Z", "2026-01-02T24:04:05Z", "2026-01-02T03:04:05", "2026-01-02T03:04:05.Z",
             "2026-01-02T03:04:05.1234567890Z", "2026-01-02T03:04:05+0530", "2026-01-02T03:04:05+05:3x", "2026/01/02T03:04:05Z", "", "2026-1a-02T03:04:05Z", "2026-01-02T03:04:05\u00e9"]
    for number, time in enumerate(times):
        keep("log-lines", f"time-{number:02}", line(time=time))
    for name, data in {
        "plain": line() + line(stream="stderr"), "nul": bytes(40) + line(), "nul-only": bytes(40) + b"\n", "torn": line()[:20], "torn-then-whole": line()[:20] + b"\n" + line(),
        "stream": line(stream="stdin"), "escapes": line(log="\\u0000\\ud83d\\ude00\\n"), "surrogate": line(log="\\ud83d"), "not-json": b"text\n", "no-time": b'{"log":"x","stream":"stdout"}\n',
        "twice": b'{"log":"x","log":"y","stream":"stdout","time":"2026-01-02T03:04:05Z"}\n', "more": b'{"log":"x","stream":"stdout","attrs":{"a":"b"},"time":"2026-01-02T03:04:05Z"}\n',
    }.items():
        keep("log-lines", name, data)


def frames() -> None:
    def frame(text: str) -> bytes:
        return struct.pack("<I", len(text)) + text.encode()

    exit_record = '{"version":1,"id":"c","exit_code":137,"oom_killed":true,"started_at":"2026-01-02T03:04:05Z","finished_at":"2026-01-02T03:04:06Z","failure":null}'
    texts = [f'{{"version":1,"verb":"{verb}"}}' for verb in ("start", "wait", "state", "close_stdin", "pause", "unpause", "delete", "dance")]
    texts += [
        '{"version":1,"verb":"kill","signal":15}', '{"version":1,"verb":"kill","signal":99999999999}', '{"version":1,"verb":"resize","height":24,"width":80}',
        '{"version":1,"verb":"attach","stdin":true,"stdout":true}', '{"version":2,"verb":"start"}', '{"version":0,"verb":"start"}', '{"verb":"start"}', '{"version":1}', "[]", "{",
        '{"version":1,"answer":{"ready":{"pid":7}}}', '{"version":1,"answer":{"started":{"pid":7,"started_at":"2026-01-02T03:04:05Z"}}}', '{"version":1,"answer":"done"}',
        f'{{"version":1,"answer":{{"exited":{exit_record}}}}}', '{"version":1,"answer":{"refused":{"message":"no"}}}',
        f'{{"version":1,"answer":{{"state":{{"id":"c","status":"stopped","pid":0,"started_at":null,"exit":{exit_record},"log_records_lost":2}}}}}}',
        '{"version":1,"config":{}}',
    ]
    for number, text in enumerate(texts):
        keep("frames", f"{number:02}", frame(text))
    keep("frames", "two", frame(texts[0]) + frame(texts[1]))
    keep("frames", "long", struct.pack("<I", 1 << 30) + b"{}")
    keep("frames", "cut", frame(texts[0])[:9])
    for kind in range(4):
        keep("frames", f"stream-{kind}", bytes([kind, 0, 0, 0, 0, 0, 0, 5]) + b"hello")
    keep("frames", "stream-long", bytes([0, 0, 0, 0, 1, 0, 0, 0]) + b"hello")


def head() -> None:
    """Heads of requests: as clients send them, and those that two parsers could read differently."""
    def request(*headers: str, line: str = "POST /x HTTP/1.1", after: bytes = b"") -> bytes:
        return "".join(f"{text}\r\n" for text in (line, *headers, "")).encode("latin-1") + after

    seeds = {
        "ping": request("Host: docker", "User-Agent: Docker-Client/28.2.2 (linux)", line="HEAD /_ping HTTP/1.1"),
        "list": request("Host: docker", line="GET /v1.44/containers/json?all=1&filters=%7B%7D HTTP/1.1"),
        "create": request("Host: docker", "Content-Type: application/json", "Content-Length: 2", line="POST /containers/create?name=a HTTP/1.1", after=b"{}"),
        "attach": request("Connection: Upgrade", "Upgrade: tcp", "Content-Length: 0", line="POST /containers/a/attach?stream=1 HTTP/1.1"),
        "build": request("Transfer-Encoding: chunked", "Expect: 100-continue", line="POST /build HTTP/1.1", after=b"2\r\nhi\r\n0\r\n\r\n"),
        "put": request("Content-Length: 9", line="PUT /containers/a/archive?path=/ HTTP/1.1", after=b"too short"),
        "remove": request("Connection: close, x", line="DELETE /images/a HTTP/1.1"), "options": request(line="OPTIONS * HTTP/1.1"),
        "old": request("Connection: keep-alive", line="GET / HTTP/1.0"), "old-chunked": request("Transfer-Encoding: chunked", line="POST / HTTP/1.0"),
        "newer": request(line="GET / HTTP/2.0"), "other-method": request(line="BREW /pot HTTP/1.1"), "line-only": b"GET / HTTP/1.1\r\n", "nothing": b"\r\n\r\n",
        "absolute": request(line="GET http://docker/_ping HTTP/1.1"), "absolute-tls": request(line="GET https://docker HTTP/1.1"), "authority": request(line="CONNECT docker:80 HTTP/1.1"),
        "both": request("Content-Length: 5", "Transfer-Encoding: chunked"), "two-lengths": request("Content-Length: 5", "Content-Length: 6"),
        "same-lengths": request("Content-Length: 5", "Content-Length: 5"), "length-list": request("Content-Length: 5, 6"), "length-sign": request("Content-Length: +5"),
        "length-empty": request("Content-Length: "), "length-huge": request("Content-Length: 99999999999999999999999"), "coding": request("Transfer-Encoding: gzip, chunked"),
        "space-before-colon": request("Content-Length : 5"), "folded": request("X: a", " b"), "latin": request("X: \u00e9", "Upgrade: \u00e9"), "nul": request("X: a\0b"),
        "many": request(*(f"X-{number}: y" for number in range(101))), "hundred": request(*(f"X-{number}: y" for number in range(100))),
        "bare-line-ends": b"GET / HTTP/1.1\nHost: d\n\n", "long-target": request(line="GET /" + "a" * 9000 + " HTTP/1.1"),
    }
    for name, data in seeds.items():
        keep("head", name, data)


def recipe() -> None:
    """What the frames of a recipe hold. Whole files come from the writer itself (`cargo run -p baleen-fuzz --example recipes`)."""
    def number(value: int) -> bytes:
        out = b""
        while value >= 0x80:
            out += bytes([value & 0x7F | 0x80])
            value >>= 7
        return out + bytes([value])

    def field(data: bytes) -> bytes:
        return number(len(data)) + data

    digest = b"\x01" + bytes(32)
    content = number(300) + bytes(range(32))
    file = b"\x03" + field(b"usr/bin/true") + content
    sparse = b"\x04" + field(b"var/hole") + content + number(2) + number(0) + number(100) + number(4096) + number(200)
    head = digest + number(10240) + number(2) + number(300)

    def copied(kind: int, rest: bytes, mode: int = 0o755, nanoseconds: int = 5) -> bytes:
        facts = b"".join(number(value) for value in (mode, 1000, 1000, 1, 3)) + struct.pack("<q", -7) + number(nanoseconds)
        return b"\x06" + field(b"usr/lib/x") + bytes([kind]) + facts + rest

    plain = field(b"") + number(0)
    attributes = field(b"") + number(1) + field(b"user.note") + field(b"below")
    moves = number(1) + number(3) + number(0) + field(b"usr/bin")
    frames = number(2) + number(16) + number(2) + field(b"a") + field(b"z") + number(900) + number(0)
    seeds = {
        "items": b"\x01" + field(TEXT[:100]) + b"\x02" + number(1024) + file + sparse + b"\x05" + number(7) + content,
        "copied": copied(1, plain) + copied(0, attributes + content) + copied(2, field(b"to") + number(0)) + b"\x07" + field(b"usr/lib/x"),
        "copied-nodes": copied(3, plain) + copied(4, plain) + copied(5, plain) + copied(6, plain),
        "copied-kind": copied(7, plain), "copied-mode": copied(5, plain, mode=0o10000), "copied-time": copied(5, plain, nanoseconds=1 << 31),
        "copied-owner": b"\x06" + field(b"x") + b"\0" + number(0o644) + number(1 << 40), "copied-many": copied(5, field(b"") + number(5000)),
        "literal-long": b"\x01" + number(1 << 20), "literal-cut": b"\x01" + number(90) + b"x", "item-unknown": b"\x09",
        "sparse-many": b"\x04" + field(b"x") + content + number(1 << 30),
        "sparse-endless": b"\x04" + field(b"x") + content + number(1) + number((1 << 64) - 1) + number(2),
        "sparse-gap-endless": b"\x04" + field(b"x") + content + number(2) + number((1 << 64) - 1) + number(0) + number(9) + number(0),
        "sparse-sum": b"\x04" + field(b"x") + content + number(1) + number(0) + number(5),
        "number-large": b"\x02" + b"\xff" * 9 + b"\x02", "number-largest": b"\x02" + b"\xff" * 9 + b"\x01", "number-cut": b"\x02\xff",
        "index": head + number(1) + moves + frames, "index-512": b"\x02" + bytes(64) + head[33:] + number(0) + number(0) + number(0),
        "index-flags": head + number(2), "index-digest": b"\x07", "index-more": head + number(0) + moves + frames + b"x",
        "index-moves": head + number(0) + number(1 << 40), "index-frames": head + number(0) + number(0) + number(1 << 40),
        "index-files": head + number(0) + number(0) + number(2) + (number(0) + number((1 << 64) - 1) + field(b"a") + field(b"b")) * 2,
    }
    for name, data in seeds.items():
        keep("recipe", name, data)


def tar() -> None:
    """What GNU tar writes of one small tree in each of its formats, and of sparse files in each version."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        tree = folder / "tree"
        (tree / "d").mkdir(parents=True)
        (tree / "d/file").write_bytes(TEXT[:700])
        (tree / "empty").touch()
        os.link(tree / "d/file", tree / "hard")
        (tree / "link").symlink_to("d/file")
        os.mkfifo(tree / "fifo")
        os.mknod(tree / "null", 0o020666, os.makedev(1, 3))
        os.setxattr(tree / "empty", "user.k", b"v")
        holes = folder / "holes"
        with holes.open("wb") as file:
            for offset in (0, 1 << 20):
                file.seek(offset)
                file.write(b"x" * 100)
            file.truncate(3 << 20)

        def archive(name: str, *arguments: str) -> None:
            data = subprocess.run(["tar", "-C", str(folder), "-c", "-b1", "--sort=name", "--mtime=@1700000000.25", "--owner=0", "--group=0",
                                   "--numeric-owner", *arguments, *(["--pax-option=delete=atime,delete=ctime"] if "--format=pax" in arguments else [])],
                                  stdout=subprocess.PIPE, check=True).stdout
            keep("tar", f"{name}.tar", data)

        for form in ("v7", "oldgnu", "gnu", "ustar", "pax"):
            archive(f"gnu-{form}", f"--format={form}", *(["--exclude=fifo", "--exclude=null"] if form == "v7" else []), "tree")
        archive("gnu-xattrs", "--format=pax", "--xattrs", "tree")
        archive("incremental", "--format=gnu", f"--listed-incremental={folder / 'snapshot'}", "tree")
        archive("label", "--format=gnu", "--label=volume", "tree")
        archive("sparse-oldgnu", "--format=oldgnu", "--sparse", "holes")
        archive("sparse-gnu", "--format=gnu", "--sparse", "holes")
        archive("sparse-pax", "--format=pax", "--sparse", "holes")
        for version in ("0.0", "0.1", "1.0"):
            archive(f"sparse-{version}", "--format=pax", "--sparse", f"--sparse-version={version}", "holes")
    # More parts than a header and one block hold, of one byte each.
    parts = [(number * 10, 1) for number in range(27)]
    def entries(some: list) -> bytes:
        return b"".join(f"{offset:011o}\0{length:011o}\0".encode() for offset, length in some)
    head = bytearray(tarfile.TarInfo("parts").tobuf(tarfile.GNU_FORMAT))
    head[124:136], head[156:157] = f"{len(parts):011o}\0".encode(), b"S"
    head[386:386 + 24 * 4], head[482:483], head[483:495] = entries(parts[:4]), b"\1", b"00000001000\0"
    head[148:156] = b" " * 8
    head[148:156] = f"{sum(head):06o}\0 ".encode()
    blocks = [entries(parts[4:25]) + b"\1", entries(parts[25:])]
    body = b"".join(block.ljust(512, b"\0") for block in blocks) + bytes(range(len(parts)))
    keep("tar", "sparse-oldgnu-parts.tar", bytes(head) + body.ljust(3 * 512, b"\0") + bytes(1024))


def extraction() -> None:
    """Archives of several entries, each a list of (name, type, what it holds or leads to) with further fields."""
    def archive(*entries: tuple, end: bool = True) -> bytes:
        out = io.BytesIO()
        for name, kind, *rest in entries:
            info = tarfile.TarInfo(name)
            info.type = kind
            info.mode = 0o755 if kind == DIR else 0o644
            info.mtime = 1_700_000_000
            data = b""
            for part in rest:
                if isinstance(part, dict):
                    for field, value in part.items():
                        setattr(info, field, value)
                elif isinstance(part, bytes):
                    data = part
                else:
                    info.linkname = part
            info.size = info.size or len(data)
            out.write(info.tobuf(tarfile.PAX_FORMAT))
            out.write(data + bytes(-len(data) % 512))
        return out.getvalue() + bytes(1024 if end else 0)

    FILE, DIR, LINK, HARD = tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE
    CHAR, BLOCK, FIFO = tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE

    def xattr(name: str, value: str) -> dict:
        return {"pax_headers": {f"SCHILY.xattr.{name}": value}}

    many = [(f"d{number}/e{number}/f", FILE, b"x") for number in range(5)]
    deep = "/".join("abcdefgh" * 2 for _ in range(12))
    seeds = {
        "tree": archive(("a", DIR), ("a/b", DIR), ("a/b/c", FILE, b"text"), ("a/l", LINK, "b/c"), ("a/h", HARD, "a/b/c")),
        "implied": archive(*many),
        "deep": archive((deep + "/f", FILE, b"x"), (deep + "/g", FILE, b"y")),
        "nodes": archive(("c", CHAR, {"devmajor": 1, "devminor": 3}), ("b", BLOCK, {"devmajor": 8}), ("p", FIFO), ("w", CHAR)),
        "node-hard": archive(("c", CHAR, {"devmajor": 1}), ("d", HARD, "c")),
        "unknown-type": archive(("u", b"Z", b"data"), ("s", b"s")),
        "owner": archive(("o", FILE, b"x", {"uid": 1000, "gid": 1000, "mode": 0o6755}), ("t", DIR, {"uid": 3, "mode": 0o2775}), ("t/u", FILE, b"x")),
        "xattr": archive(("f", FILE, b"x", xattr("user.k", "v")), ("d", DIR, xattr("user.k", "v")), ("g", FILE, xattr("trusted.overlay.opaque", "y"))),
        "xattr-link": archive(("l", LINK, "x", xattr("user.k", "v"))),
        "xattr-long": archive(("f", FILE, b"x", xattr("user." + "k" * 250, "v" * 5000))),
        "capability": archive(("f", FILE, b"x", xattr("security.capability", "\1\0\0\2" + "\0" * 16))),
        "capability-bad": archive(("f", FILE, b"x", xattr("security.capability", "no"))),
        "replaced-file": archive(("f", FILE, b"one"), ("f", FILE, b"two")),
        "replaced-empty": archive(("f", FILE), ("f", FILE, b"two")),
        "replaced-by-folder": archive(("f", FILE, b"one"), ("f", DIR), ("f/g", FILE, b"x")),
        "replaced-folder": archive(("d", DIR), ("d/f", FILE, b"one"), ("d", FILE, b"two")),
        "replaced-deep": archive(("d", DIR), ("d/e", DIR), ("d/e/f", FILE, b"one"), ("d/e/g", LINK, "f"), ("d", LINK, "x")),
        "replaced-by-link": archive(("f", FILE, b"one"), ("f", LINK, "g"), ("f", FILE, b"two")),
        "replaced-folder-again": archive(("d", DIR), ("d", DIR, {"mode": 0o700}), ("d", LINK, "e"), ("d", DIR)),
        "replaced-hard": archive(("f", FILE, b"one"), ("h", HARD, "f"), ("f", FILE, b"two"), ("h", FILE, b"three")),
        "link-folder": archive(("d", DIR), ("l", LINK, "d"), ("l/f", FILE, b"through"), ("l/g/h", FILE, b"through")),
        "link-absolute": archive(("d", DIR), ("l", LINK, "/d"), ("l/f", FILE, b"through"), ("h", HARD, "/l/f")),
        "link-climbs": archive(("a", DIR), ("a/l", LINK, "../../../../etc"), ("a/l/passwd", FILE, b"owned"), ("etc", DIR), ("a/l/passwd", FILE, b"owned")),
        "link-up": archive(("a", DIR), ("a/b", DIR), ("a/b/l", LINK, "../.."), ("a/b/l/f", FILE, b"x"), ("a/b/l/a/b/g", FILE, b"x")),
        "link-loop": archive(("l", LINK, "m"), ("m", LINK, "l"), ("l/f", FILE, b"x")),
        "link-chain": archive(("d", DIR), ("l", LINK, "m/"), ("m", LINK, "./d/."), ("l/f", FILE, b"x")),
        "link-to-file": archive(("f", FILE, b"x"), ("l", LINK, "f"), ("l/g", FILE, b"x")),
        "link-nowhere": archive(("l", LINK, "none"), ("l/f", FILE, b"x")),
        "link-empty": archive(("l", LINK, "")),
        "link-nowhere-hard": archive(("h", HARD, "l/x"), ("l", LINK, "none"), ("h", HARD, "l/x")),
        "hard-climbs": archive(("h", HARD, "../../etc/passwd"), ("etc", DIR), ("h", HARD, "etc/passwd")),
        "hard-absolute": archive(("h", HARD, "/etc/passwd")),
        "hard-link-to-link": archive(("f", FILE, b"x"), ("l", LINK, "f"), ("h", HARD, "l")),
        "hard-to-folder": archive(("d", DIR), ("h", HARD, "d")),
        "hard-to-itself": archive(("f", FILE, b"x"), ("f", HARD, "f")),
        "hard-under-itself": archive(("d", DIR), ("d/f", FILE, b"x"), ("d", HARD, "d/f")),
        "hard-to-root": archive(("h", HARD, "."), ("i", HARD, "/")),
        "root": archive((".", DIR, {"mode": 0o700, "uid": 5}), ("./f", FILE, b"x"), ("/", DIR)),
        "root-file": archive((".", FILE, b"x")), "root-link": archive(("/", LINK, "x")),
        "names": archive(("a//b/./c", FILE, b"x"), ("../up", FILE, b"x"), ("x/..", DIR), ("", FILE, b"x")),
        "name-up": archive(("../../etc/passwd", FILE, b"owned")), "name-absolute": archive(("/etc/passwd", FILE, b"owned")),
        "name-long": archive(("n" * 300, FILE, b"x")), "path-long": archive(("/".join(["n" * 200] * 24), FILE, b"x")),
        "whiteout": archive(("d", DIR), ("d/.wh.f", FILE), (".wh.g", FILE, b"data"), ("d/.wh.h", DIR)),
        "whiteout-opaque": archive(("d", DIR), ("d/.wh..wh..opq", FILE), ("d/f", FILE, b"x"), (".wh..wh..opq", FILE)),
        "whiteout-after": archive(("f", FILE, b"x"), (".wh.f", FILE), ("d", DIR), ("d/g", FILE, b"x"), (".wh.d", FILE)),
        "whiteout-before": archive((".wh.f", FILE), ("f", FILE, b"x"), (".wh.d", FILE), ("d", DIR), ("d/g", FILE, b"x")),
        "whiteout-twice": archive((".wh.f", FILE), (".wh.f", FILE), (".wh.f", LINK, "x")),
        "whiteout-bad": archive((".wh.", FILE)), "whiteout-dots": archive((".wh...", FILE), (".wh..", FILE)),
        "whiteout-other": archive((".wh..wh.plnk", DIR), (".wh..wh.aufs", FILE, b"x"), (".wh..wh.plnk/1.2", FILE, b"y")),
        "whiteout-folder": archive((".wh.d/f", FILE, b"x"), ("a", HARD, ".wh.x")),
        "whiteout-link": archive(("d", DIR), ("l", LINK, "d"), ("l/.wh.f", FILE), ("l/.wh..wh..opq", FILE)),
        "file-as-folder": archive(("f", FILE, b"x"), ("f/g", FILE, b"y")),
        "node-as-folder": archive(("c", CHAR, {"devmajor": 1}), ("c/g", FILE, b"y")),
        "times": archive(("f", FILE, b"x", {"pax_headers": {"mtime": "1700000000.123456789"}}), ("d", DIR, {"pax_headers": {"mtime": "-1.5"}}), ("d/e", FILE)),
        "size-on-link": archive(("l", LINK, "x", {"size": 9})),
        "file-long": archive(("f", FILE, b"abc" * 3000), ("g", FILE, bytes(4096))),
        "cut": archive(("f", FILE, b"x" * 900), end=False)[:1200],
        "no-end": archive(("f", FILE, b"x"), end=False), "tail": archive(("f", FILE, b"x")) + bytes(99) + b"tail" + bytes(9),
        "handles": archive(*[(f"p{number}/q/r/s/t/u", DIR) for number in range(9)], ("p0/q/r/s/t/u/v", FILE, b"x"), ("p0/q/w", FILE, b"x")),
    }
    for name, data in seeds.items():
        keep("extraction", name, data)


for target in (addresses, decompress, dns, extraction, frames, head, headers, log, log_lines, recipe, tar, users):
    target()
