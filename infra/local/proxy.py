"""Stands between the functions and the local cloud: breaks what it is told to break, and counts every call.

    python proxy.py --upstream 127.0.0.1:4566      prints {"address": "127.0.0.1:PORT"} once it listens

Faults and the meter are asked for over HTTP on the same port:

    PUT    /_faults/<service>        {"mode": "refuse", ...}     sets the service's rule without an id
    PUT    /_faults/<service>/<id>   {"mode": "refuse", ...}     one more; an id that is there is replaced, as the last
    DELETE /_faults/<service>        or /_faults/<service>/<id>: that rule only
    GET    /_faults                  {service: {id: rule}}, "" for the one without an id; each with "met", how many requests
                                     it applied to, so that `delay` with 0 `ms` counts and breaks nothing
    GET    /_calls                   [{"service", "operation", "function", "status", "read_units", "write_units"}, ...]
    DELETE /_calls

A service is named as in the SigV4 credential scope (dynamodb, s3, sqs, lambda, secretsmanager). A rule has one of MODES
and applies to requests that have all that it names:

    "operation"   as AWS spells it: "PutItem", "CreateQueue", "Invoke"
    "function"    by the `app/` part of its user agent (AWS_SDK_UA_APP_ID)
    "path"        how the path ends
    "contains"    text in the request's target, as it stands or percent-decoded, or in its body, as it stands; of
                  bodies, those of up to 256 KiB are looked at, and none of S3's
    "skip"        lets that many such requests through first
    "count"       after that many more it no longer applies

Rules are asked in the order in which they were set. The first that applies decides; those behind it do not count the
request.
"""

import argparse
import asyncio
import http.client
import json
import re
import sys
from collections import deque
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

MODES = {
    "refuse": "answers 503 and does not pass the request on",
    "close": "closes the connection and does not pass the request on",
    "lose-reply": "passes the request on, then closes the connection instead of answering",
    "delay": "waits `ms` milliseconds (1000) before passing the request on",
    "fail": "answers `status` (400) with the AWS error `code` and `message`, and does not pass the request on",
}
SELECTORS = {"operation", "function", "path", "contains", "skip", "count"}
OF_MODE = {"delay": {"ms"}, "fail": {"status", "code", "message"}}
HEAD_LIMIT = 256 * 1024
LOOK_LIMIT = 256 * 1024
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


async def held_of(parts, limit: int) -> bytes:
    """The beginning of a body: all of it, unless it is longer than `limit`. The rest can still be read from `parts`."""
    held = bytearray()
    async for part in parts:
        held += part
        if len(held) > limit:
            break
    return bytes(held)


async def joined(held: bytes, parts):
    if held:
        yield held
    async for part in parts:
        yield part


def payload_of(head: Head, wire: bytes) -> bytes:
    """A whole body without its chunk framing."""
    if "chunked" not in head.get("transfer-encoding").lower():
        return wire
    payload = b""
    while True:
        size_line, _, wire = wire.partition(b"\r\n")
        size = int(size_line.split(b";")[0], 16)
        if size == 0:
            return payload
        payload, wire = payload + wire[:size], wire[size + 2:]


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
    """One rule, as the module's description has it."""

    def __init__(self, rule: dict):
        mode = rule.get("mode") if isinstance(rule, dict) else None
        if mode not in MODES or set(rule) - {"mode"} - SELECTORS - OF_MODE.get(mode, set()):
            raise ValueError(f"a fault is one of {', '.join(MODES)}, with what belongs to it; got {json.dumps(rule)}")
        self.rule = rule
        self.mode = mode
        self.skip = int(rule.get("skip", 0))
        self.count = int(rule["count"]) if "count" in rule else None
        self.met = 0
        self.text = rule.get("contains")
        if self.text is not None and not (isinstance(self.text, str) and self.text):
            raise ValueError("`contains` is a text, and not an empty one")
        if mode == "fail":
            if not isinstance(rule.get("code"), str) or not re.fullmatch(r"[\w.#:]+", rule["code"]):
                raise ValueError("`fail` needs the `code` of an AWS error, such as AccessDeniedException")
            if not 400 <= int(rule.get("status", 400)) <= 599:
                raise ValueError("the `status` of `fail` is one from 400 to 599")

    def concerns(self, operation: str, function: str | None, target: str) -> bool:
        """Whether all but the text is as the rule says."""
        return (urlsplit(target).path.endswith(self.rule.get("path", ""))
                and self.rule.get("operation", operation) == operation
                and self.rule.get("function", function) == function)

    def applies(self, operation: str, function: str | None, target: str, body: bytes) -> bool:
        if not self.concerns(operation, function, target):
            return False
        if self.text is not None and self.text not in target and self.text not in unquote(target):
            if self.text.encode() not in body:
                return False
        if self.skip > 0:
            self.skip -= 1
            return False
        if self.count is not None:
            self.count -= 1
            if self.count < 0:
                return False
        self.met += 1
        return True


class Proxy:
    def __init__(self, host: str, port: int):
        self.upstream = (host, port)
        self.faults: dict[str, dict[str, Fault]] = {}
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

        parts = body_of(head, reader)
        fault, parts = await self.fault_of(call, target, head, parts)
        mode = fault.mode if fault else None
        if mode in ("refuse", "fail"):
            async for _ in parts:
                pass
            call["status"] = answer_fault(writer, service, method, fault)
            return upstream or await self.connect()
        if mode == "close":
            return None
        if mode == "delay":
            await asyncio.sleep(int(fault.rule.get("ms", 1000)) / 1000)

        if upstream is None or upstream[0].at_eof() or upstream[1].is_closing():
            upstream = await self.connect()
        up_reader, up_writer = upstream

        if service == "dynamodb" and operation in DYNAMODB_READS | DYNAMODB_WRITES:
            body = ask_for_units(payload_of(head, b"".join([part async for part in parts])))
            head.set("content-length", str(len(body)))
            head.set("transfer-encoding", None)
            up_writer.write(head.encode() + body)
        else:
            up_writer.write(head.encode())
            async for part in parts:
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
        answered = body_of(answer, up_reader, until_close=True) if not bodiless else no_parts()
        if mode == "lose-reply":
            async for _ in answered:
                pass
            return None
        writer.write(answer.encode())
        kept = []
        async for part in answered:
            writer.write(part)
            await writer.drain()
            if service == "dynamodb":
                kept.append(part)
        if kept:
            call["read_units"], call["write_units"] = units_of(operation, b"".join(kept))
        return upstream if answer.keeps_alive() else None

    async def fault_of(self, call: dict, target: str, head: Head, parts):
        """The rule that applies to a request, if one does, and the request's body. The body is read before the decision
        only where a rule asks for its text: everything else streams."""
        of_call = call["operation"], call["function"], target
        held = body = b""
        looked_at = [f for f in self.rules(call["service"]) if f.text is not None and f.concerns(*of_call)]
        if looked_at and call["service"] != "s3" and int(head.get("content-length") or 0) <= LOOK_LIMIT:
            held = await held_of(parts, LOOK_LIMIT)
            parts = joined(held, parts)
            if len(held) <= LOOK_LIMIT:
                body = payload_of(head, held)
        # Asked for again, for while the body came in the rules may have changed.
        rules = self.rules(call["service"])
        return next((fault for fault in rules if fault.applies(*of_call, body)), None), parts

    def rules(self, service: str) -> list[Fault]:
        return list(self.faults.get(service, {}).values())

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
                rules = {service: {name: {**fault.rule, "met": fault.met} for name, fault in faults.items()}
                         for service, faults in self.faults.items()}
                respond(writer, "200 OK", json.dumps(rules).encode())
            elif path.startswith("/_faults/") and method in ("PUT", "DELETE"):
                service, _, name = path.removeprefix("/_faults/").partition("/")
                fault = Fault(json.loads(body)) if method == "PUT" else None
                self.faults.setdefault(service, {}).pop(name, None)
                if fault is not None:
                    self.faults[service][name] = fault
                elif not self.faults[service]:
                    del self.faults[service]
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


def answer_fault(writer: asyncio.StreamWriter, service: str, method: str, fault: Fault) -> int:
    """Answers as the service would, and returns the status."""
    status, code, message, headers = 503, "ServiceUnavailable", "refused by a fault", ""
    if fault.mode == "fail":
        status, code = int(fault.rule.get("status", 400)), fault.rule["code"]
        message = str(fault.rule.get("message", "failed by a fault"))
        headers = f"x-amzn-errortype: {code}\r\n"
    body = json.dumps({"__type": code, "message": message})
    if service == "s3":
        body = f"<Error><Code>{code}</Code><Message>{escape(message)}</Message></Error>"
    reason = http.client.responses.get(status, "Error")
    respond(writer, f"{status} {reason}", b"" if method == "HEAD" else body.encode(), headers)
    return status


def respond(writer: asyncio.StreamWriter, status: str, body: bytes = b"", headers: str = "") -> None:
    head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n{headers}\r\n"
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
