#!/usr/bin/env python3
"""The proxy's rules, played against an upstream that answers everything with 200."""

import asyncio
import json
import unittest

from proxy import HEAD_LIMIT, LOOK_LIMIT, Proxy, body_of, read_head

ALICE, BOB = b'{"TableName": "t", "Key": "alice"}', b'{"TableName": "t", "Key": "bob"}'


# What never comes is a failure, not a test that hangs.
PATIENCE = 10


class Rules(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self):
        self.received: asyncio.Queue = asyncio.Queue()
        self.serving: list[asyncio.Task] = []
        self.clients: list[asyncio.StreamWriter] = []
        upstream = await self.listen(self.upstream)
        self.proxy = Proxy("127.0.0.1", upstream)
        self.port = await self.listen(self.proxy.serve)

    async def asyncTearDown(self):
        for client in self.clients:
            client.close()
        await asyncio.wait_for(asyncio.gather(*self.serving), PATIENCE)

    async def listen(self, serve) -> int:
        async def followed(reader, writer):
            self.serving.append(asyncio.current_task())
            await serve(reader, writer)

        server = await asyncio.start_server(followed, "127.0.0.1", 0, limit=HEAD_LIMIT)
        self.addCleanup(server.close)
        return server.sockets[0].getsockname()[1]

    async def upstream(self, reader, writer):
        while head := await read_head(reader):
            async for part in body_of(head, reader):
                self.received.put_nowait(part)
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
        writer.close()

    async def begin(self, target, body, service, operation, chunked=False, method="POST"):
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.clients.append(writer)
        length = "transfer-encoding: chunked" if chunked else f"content-length: {len(body)}"
        writer.write(f"{method} {target} HTTP/1.1\r\nhost: x\r\n{length}\r\nx-amz-target: X.{operation}\r\n"
                     f"authorization: Credential=a/20260101/r/{service}/aws4_request\r\n\r\n".encode())
        return reader, writer

    async def end(self, reader):
        """(status, error type, body); the status is None where the connection was closed instead."""
        if (head := await asyncio.wait_for(read_head(reader), PATIENCE)) is None:
            return None, None, None
        body = b"".join([part async for part in body_of(head, reader)])
        return int(head.start.split(" ")[1]), head.get("x-amzn-errortype"), body

    async def ask(self, body=b"", target="/", service="dynamodb", operation="GetItem", wire=None, method="POST"):
        reader, writer = await self.begin(target, body, service, operation, wire is not None, method)
        writer.write(body if wire is None else wire)
        return await self.end(reader)

    async def status(self, *arguments, **more):
        return (await self.ask(*arguments, **more))[0]

    async def admin(self, method, path, rule=None):
        return await self.ask(json.dumps(rule).encode() if rule is not None else b"", path, method=method)

    async def set(self, path, **rule):
        self.assertEqual((await self.admin("PUT", f"/_faults/{path}", rule))[0], 204)

    async def test_rules_of_one_service_stand_side_by_side(self):
        await self.set("dynamodb", mode="refuse", operation="PutItem")
        await self.set("dynamodb/a", mode="close", contains="alice")
        await self.set("dynamodb/b", mode="fail", code="AccessDeniedException", contains="bob", count=1)
        self.assertEqual(await self.status(ALICE), None)
        self.assertEqual(await self.status(ALICE, operation="PutItem"), 503, "the first that was set decides")
        self.assertEqual(await self.status(BOB), 400)
        self.assertEqual(await self.status(BOB), 200, "counted out")
        self.assertEqual(await self.status(ALICE, service="sqs"), 200)
        _, _, listed = await self.admin("GET", "/_faults")
        rules = json.loads(listed)["dynamodb"]
        self.assertEqual([(name, rule["met"]) for name, rule in rules.items()], [("", 1), ("a", 1), ("b", 1)])
        await self.admin("DELETE", "/_faults/dynamodb")
        self.assertEqual(await self.status(BOB, operation="PutItem"), 200)
        self.assertEqual(await self.status(ALICE), None, "only the rule that was named is gone")
        await self.admin("DELETE", "/_faults/dynamodb/a")
        self.assertEqual(await self.status(ALICE), 200)

    async def test_what_does_not_match_is_not_counted(self):
        await self.set("dynamodb/a", mode="refuse", contains="alice", skip=1, count=1)
        for body, expected in [(BOB, 200), (ALICE, 200), (BOB, 200), (ALICE, 503), (ALICE, 200)]:
            self.assertEqual(await self.status(body), expected)

    async def test_where_text_is_looked_for(self):
        padding = b"x" * (LOOK_LIMIT - 5)
        target = "/event-source-mappings/?arn=q%3A%61lice"
        for service, request, expected in [
            ("lambda", {"target": target}, 503),
            ("s3", {"target": target}, 503),
            ("s3", {"body": ALICE}, 200),
            ("sqs", {"body": padding + b"alice"}, 503),
            ("sqs", {"body": padding + b"alice."}, 200),
            ("sqs", {"wire": b"3\r\nali\r\n2;x=y\r\nce\r\n0\r\n\r\n"}, 503),
            ("sqs", {"wire": b"%x\r\n%s\r\n5\r\nalice\r\n0\r\n\r\n" % (len(padding), padding)}, 200),
        ]:
            with self.subTest(service=service, request=str(request)[-60:]):
                await self.set(service, mode="refuse", contains="alice")
                self.assertEqual(await self.status(service=service, **request), expected)

    async def test_what_was_looked_at_is_passed_on_whole(self):
        await self.set("sqs", mode="refuse", contains="carol")
        for body in (ALICE, b"", b"x" * LOOK_LIMIT, b"x" * (LOOK_LIMIT + 1)):
            self.assertEqual(await self.status(body, service="sqs"), 200)
            arrived = b"".join(self.received.get_nowait() for _ in range(self.received.qsize()))
            self.assertEqual(arrived, body)
        wire = b"%x\r\n%s\r\n0\r\n\r\n" % (len(ALICE), ALICE)
        self.assertEqual(await self.status(wire=wire), 200)
        asked = {**json.loads(ALICE), "ReturnConsumedCapacity": "TOTAL"}
        self.assertEqual(json.loads(self.received.get_nowait()), asked)

    async def test_a_body_streams_where_no_rule_asks_for_its_text(self):
        await self.set("s3", mode="refuse", contains="alice")
        await self.set("sqs", mode="refuse", contains="alice", operation="CreateQueue")
        for service in ("s3", "sqs"):
            reader, writer = await self.begin("/bucket/key", BOB, service, "Send")
            writer.write(BOB[:9])
            self.assertEqual(await asyncio.wait_for(self.received.get(), PATIENCE), BOB[:9])
            writer.write(BOB[9:])
            self.assertEqual((await self.end(reader))[0], 200)
            self.received.get_nowait()

    async def test_an_aws_error_of_ones_own(self):
        for service, answer in [
            ("dynamodb", b'{"__type": "LimitExceededException", "message": "a < b"}'),
            ("s3", b"<Error><Code>LimitExceededException</Code><Message>a &lt; b</Message></Error>"),
        ]:
            await self.set(service, mode="fail", status=409, code="LimitExceededException", message="a < b")
            self.assertEqual(await self.ask(ALICE, service=service), (409, "LimitExceededException", answer))
        self.assertEqual(await self.ask(service="s3", method="HEAD"), (409, "LimitExceededException", b""))
        self.assertTrue(self.received.empty(), "nothing was passed on")
        self.assertEqual([call["status"] for call in self.proxy.calls], [409, 409, 409])

    async def test_a_rule_that_cannot_be_meant_is_refused(self):
        for rule in [
            [], {}, {"mode": "explode"}, {"mode": "refuse", "contain": "x"}, {"mode": "refuse", "code": "X"},
            {"mode": "refuse", "contains": ""}, {"mode": "refuse", "contains": 7}, {"mode": "refuse", "count": "many"},
            {"mode": "fail"}, {"mode": "fail", "code": "X\r\nY: z"}, {"mode": "fail", "code": "X", "status": 200},
        ]:
            with self.subTest(rule=rule):
                self.assertEqual((await self.admin("PUT", "/_faults/dynamodb", rule))[0], 400)
        self.assertEqual(self.proxy.faults, {})


if __name__ == "__main__":
    unittest.main()
