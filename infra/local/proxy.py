"""Stands between the functions and the local cloud: breaks what it is told to break, and counts every call.

    python proxy.py --upstream 127.0.0.1:4566      prints {"address": "127.0.0.1:PORT"} once it listens

Faults and the meter are asked for over HTTP on the same port:

    PUT    /_faults/<service>   {"mode": "refuse"}   see MODES; also "operation", "function", "path" (its end), "skip",
                              "count", "ms"
    DELETE /_faults/<service>
    GET    /_faults             what is set
    GET    /_calls              [{"service", "operation", "function", "status", "read_units", "write_units"}, ...]
    DELETE /_calls

A service is named as in the SigV4 credential scope (dynamodb, s3, sqs, lambda, secretsmanager); the function is known
by the `app/` part of its user agent (AWS_SDK_UA_APP_ID).
"""

import argparse
import asyncio
import json
import re
import sys
from collections import deque
from urllib.parse import parse_qs, unquote, urlsplit

MODES = {
    "refuse": "answers 503 and does not pass the request on",
    "close": "closes the connection and does not pass the request on",
    "lose-reply": "passes the request on, then closes the connection instead of answering",
    "delay": "waits `ms` milliseconds before passing the request on",
}
HEAD_LIMIT = 256 * 1024
CHUNK = 64 * 1024

SCOPE = re.compile(r"Credential=[^/\s,]+/\d{8}/[^/]+/([^/]+)/aws4_request")
APP = re.compile(r"\bapp/([\w.-]+)")

LAMBDA_OPERATIONS = [
    ("POST", r"/event-source-mappings/?$", "CreateEventSourceMapping"),
    ("GET", r"/event-source-mappings/?$", "ListEventSourceMappings"),
    ("GET", r"/event-source-mappings/[^/]+$", "GetEventSourceMapping"),
    ("PUT", r"/event-source-mappings/[^/]+$", "UpdateEventSourceMapping"),
    ("DELETE", r"/event-source-mappings/[^/]+$", "DeleteEventSourceMapping"),
    ("POST", r"/functions/[^/]+/invocations$", "Invoke"),
    ("GET", r"/functions/[^/]+$", "GetFunction"),
]
DYNAMODB_READS = {"GetItem", "BatchGetItem", "Query", "Scan", "TransactGetItems"}
DYNAMODB_WRITES = {"PutItem", "UpdateItem", "DeleteItem", "BatchWriteItem", "TransactWriteItems"}


class Head:
    """Start line and headers of a request or a response; names keep their spelling, look-ups ignore it."""

    def __init__(self, raw: bytes):
        lines = raw.decode("latin-1").rstrip("\r\n").split("\r\n")
        self.start = lines[0]
        self.headers = [tuple(part.strip() for part in line.split(":", 1)) for line in lines[1:] if ":" in line]

    def get(self, name: str, default: str = "") -> str:
        return next((v for n, v in self.headers if n.lower() == name), default)

    def set(self, name: str, value: str | None) -> None:
        self.headers = [(n, v) for n, v in self.headers if n.lower() != name]
        if value is not None:
            self.headers.append((name, value))

    def keeps_alive(self) -> bool:
        return "close" not in self.get("connection").lower() and "HTTP/1.0" not in self.start

    def encode(self) -> bytes:
        return "\r\n".join([self.start, *(f"{n}: {v}" for n, v in self.headers), "", ""]).encode("latin-1")


async def read_head(reader: asyncio.StreamReader) -> Head | None:
    try:
        return Head(await reader.readuntil(b"\r\n\r\n"))
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


async def body_of(head: Head, reader: asyncio.StreamReader, until_close: bool = False):
    """Yields the body's bytes as they stand on the wire, chunk framing included."""
    if "chunked" in head.get("transfer-encoding").lower():
        while True:
            size_line = await reader.readuntil(b"\r\n")
            yield size_line
            size = int(size_line.split(b";")[0], 16)
            if size == 0:
                while True:
                    trailer = await reader.readuntil(b"\r\n")
                    yield trailer
                    if trailer == b"\r\n":
                        return
            yield await reader.readexactly(size + 2)
    elif head.get("content-length"):
        left = int(head.get("content-length"))
        while left:
            data = await reader.read(min(left, CHUNK))
            if not data:
                raise ConnectionError("the body ended early")
            left -= len(data)
            yield data
    elif until_close:
        while data := await reader.read(CHUNK):
            yield data


def service_of(head: Head, target: str) -> str:
    found = SCOPE.search(head.get("authorization"))
    if found:
        return found.group(1)
    credential = parse_qs(urlsplit(target).query).get("X-Amz-Credential", [""])[0].split("/")
    return credential[3] if len(credential) == 5 else "unsigned"


def operation_of(service: str, method: str, target: str, head: Head) -> str:
    if action := head.get("x-amz-target"):
        return action.rsplit(".", 1)[-1]
    url = urlsplit(target)
    path = unquote(url.path)
    if service == "lambda":
        names = (name for verb, pattern, name in LAMBDA_OPERATIONS if verb == method and re.search(pattern, path))
        return next(names, f"{method} {path}")
    if service == "s3":
        return s3_operation(method, path, parse_qs(url.query, keep_blank_values=True), head)
    return f"{method} {path}"


def s3_operation(method: str, path: str, query: dict, head: Head) -> str:
    has_key = len([part for part in path.strip("/").split("/", 1) if part]) == 2
    if "retention" in query:
        return {"PUT": "PutObjectRetention"}.get(method, "GetObjectRetention")
    if "uploads" in query:
        return {"POST": "CreateMultipartUpload"}.get(method, "ListMultipartUploads")
    if "uploadId" in query:
        parts = {"PUT": "UploadPart", "POST": "CompleteMultipartUpload", "DELETE": "AbortMultipartUpload"}
        return parts.get(method, "ListParts")
    if "delete" in query:
        return "DeleteObjects"
    if not has_key:
        return {"GET": "ListObjectsV2", "HEAD": "HeadBucket"}.get(method, f"{method} bucket")
    if method == "PUT" and head.get("x-amz-copy-source"):
        return "CopyObject"
    return {"GET": "GetObject", "PUT": "PutObject", "HEAD": "HeadObject", "DELETE": "DeleteObject"}.get(method, method)


def units_of(operation: str, answer: bytes) -> tuple[float, float]:
    """(read units, write units) out of ConsumedCapacity, which is an object or, for several tables, a list."""
    try:
        consumed = json.loads(answer).get("ConsumedCapacity") or []
    except (ValueError, AttributeError):
        return 0.0, 0.0
    entries = consumed if isinstance(consumed, list) else [consumed]
    reads = sum(entry.get("ReadCapacityUnits") or 0 for entry in entries)
    writes = sum(entry.get("WriteCapacityUnits") or 0 for entry in entries)
    if not reads and not writes:
        total = sum(entry.get("CapacityUnits") or 0 for entry in entries)
        reads, writes = (total, 0.0) if operation in DYNAMODB_READS else (0.0, total)
    return float(reads), float(writes)


class Fault:
    """One rule. `skip` lets that many matching requests through first; after `count` more it no longer applies."""

    def __init__(self, rule: dict):
        unknown = set(rule) - {"mode", "operation", "function", "path", "skip", "count", "ms"}
        if unknown or rule.get("mode") not in MODES:
            raise ValueError(f"a fault is one of {', '.join(MODES)}; got {json.dumps(rule)}")
        self.rule = rule
        self.skip = int(rule.get("skip", 0))
        self.count = int(rule["count"]) if "count" in rule else None

    def applies(self, operation: str, function: str | None, path: str) -> bool:
        if not path.endswith(self.rule.get("path", "")):
            return False
        if self.rule.get("operation", operation) != operation or self.rule.get("function", function) != function:
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        if self.count is None:
            return True
        self.count -= 1
        return self.count >= 0


class Proxy:
    def __init__(self, host: str, port: int):
        self.upstream = (host, port)
        self.faults: dict[str, Fault] = {}
        self.calls: deque = deque(maxlen=200_000)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client connection: requests one after the other, over one upstream connection that is kept as well."""
        upstream = None
        try:
            while head := await read_head(reader):
                method, target, _ = head.start.split(" ", 2)
                if head.get("expect").lower() == "100-continue":
                    # Answered here, so that what comes back from upstream is one response for one request.
                    writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                    head.set("expect", None)
                if target.startswith(("/_faults", "/_calls")):
                    body = b"".join([part async for part in body_of(head, reader)])
                    self.administer(method, target, body, writer)
                else:
                    upstream = await self.forward(method, target, head, reader, writer, upstream)
                    if upstream is None:
                        break
                await writer.drain()
                if not head.keeps_alive():
                    break
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError) as error:
            print(f"connection dropped: {error!r}", file=sys.stderr, flush=True)
        finally:
            for stream in (writer, upstream[1] if upstream else None):
                if stream is not None:
                    stream.close()

    async def forward(self, method, target, head, reader, writer, upstream):
        """Passes one request on. Returns the upstream connection, or None when the client's is to be closed."""
        service = service_of(head, target)
        operation = operation_of(service, method, target, head)
        app = APP.search(head.get("user-agent") + " " + head.get("x-amz-user-agent"))
        call = {"service": service, "operation": operation, "function": app.group(1) if app else None,
                "status": None, "read_units": 0.0, "write_units": 0.0}
        self.calls.append(call)

        fault = self.faults.get(service)
        mode = fault.rule["mode"] if fault and fault.applies(operation, call["function"], urlsplit(target).path) else None
        if mode == "refuse":
            async for _ in body_of(head, reader):
                pass
            call["status"] = 503
            body = b'{"__type":"ServiceUnavailable","message":"refused by a fault"}'
            if service == "s3":
                body = b"<Error><Code>ServiceUnavailable</Code><Message>refused by a fault</Message></Error>"
            respond(writer, "503 Service Unavailable", body)
            return upstream or await self.connect()
        if mode == "close":
            return None
        if mode == "delay":
            await asyncio.sleep(int(fault.rule.get("ms", 1000)) / 1000)

        if upstream is None or upstream[0].at_eof() or upstream[1].is_closing():
            upstream = await self.connect()
        up_reader, up_writer = upstream

        if service == "dynamodb" and operation in DYNAMODB_READS | DYNAMODB_WRITES:
            body = ask_for_units(b"".join([part async for part in body_of(head, reader)]))
            head.set("content-length", str(len(body)))
            head.set("transfer-encoding", None)
            up_writer.write(head.encode() + body)
        else:
            up_writer.write(head.encode())
            async for part in body_of(head, reader):
                up_writer.write(part)
                await up_writer.drain()
        await up_writer.drain()

        answer = await read_head(up_reader)
        while answer and answer.start.split(" ")[1].startswith("1"):
            answer = await read_head(up_reader)
        if answer is None:
            raise ConnectionError(f"the local cloud closed the connection on {service} {operation}")
        status = int(answer.start.split(" ")[1])
        call["status"] = status

        bodiless = method == "HEAD" or status in (204, 304)
        parts = body_of(answer, up_reader, until_close=True) if not bodiless else no_parts()
        if mode == "lose-reply":
            async for _ in parts:
                pass
            return None
        writer.write(answer.encode())
        kept = []
        async for part in parts:
            writer.write(part)
            await writer.drain()
            if service == "dynamodb":
                kept.append(part)
        if kept:
            call["read_units"], call["write_units"] = units_of(operation, b"".join(kept))
        return upstream if answer.keeps_alive() else None

    async def connect(self):
        return await asyncio.open_connection(*self.upstream, limit=HEAD_LIMIT)

    def administer(self, method: str, target: str, body: bytes, writer: asyncio.StreamWriter) -> None:
        path = urlsplit(target).path
        try:
            if path == "/_calls" and method == "GET":
                respond(writer, "200 OK", json.dumps(list(self.calls)).encode())
            elif path == "/_calls" and method == "DELETE":
                self.calls.clear()
                respond(writer, "204 No Content")
            elif path == "/_faults" and method == "GET":
                respond(writer, "200 OK", json.dumps({name: f.rule for name, f in self.faults.items()}).encode())
            elif path.startswith("/_faults/") and method == "PUT":
                self.faults[path.removeprefix("/_faults/")] = Fault(json.loads(body))
                respond(writer, "204 No Content")
            elif path.startswith("/_faults/") and method == "DELETE":
                self.faults.pop(path.removeprefix("/_faults/"), None)
                respond(writer, "204 No Content")
            else:
                respond(writer, "404 Not Found", b'{"error":"no such admin route"}')
        except (ValueError, TypeError) as error:
            respond(writer, "400 Bad Request", json.dumps({"error": str(error)}).encode())


async def no_parts():
    for part in ():
        yield part


def ask_for_units(body: bytes) -> bytes:
    """Signatures are not checked on this side, so the request may say that it wants to know what it cost."""
    try:
        request = json.loads(body)
        request.setdefault("ReturnConsumedCapacity", "TOTAL")
        return json.dumps(request).encode()
    except (ValueError, AttributeError):
        return body


def respond(writer: asyncio.StreamWriter, status: str, body: bytes = b"") -> None:
    head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)


async def main() -> None:
    arguments = argparse.ArgumentParser(description="Fault and metering proxy in front of the local cloud.")
    arguments.add_argument("--upstream", required=True, metavar="HOST:PORT")
    host, port = arguments.parse_args().upstream.rsplit(":", 1)
    proxy = Proxy(host, int(port))
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0, limit=HEAD_LIMIT)
    print(json.dumps({"address": "127.0.0.1:%d" % server.sockets[0].getsockname()[1]}), flush=True)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
