#!/usr/bin/env python3
"""The life of a tenant on the local cloud, told as it happens.

    PORT=4566 ONCE= story.py

Starts the stack, deploys it, plays every step against it from outside (HTTP, queue, schedule's event, `ggen`), prints
each receipt as it lands and how long each step took against its target, then stays up until Ctrl-C. ONCE=1 ends after
the story. Exit code 0 only if every step held, 1 if one did not, 2 if the stack could not start.
"""

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path

import stack as local
from stack import ROOT, Stack, StackError

POLICIES = ROOT / "policies"
GITHUB = ROOT / "tests" / "fixtures" / "github"
ARCHIVES = ROOT / "target" / "local-cloud" / "archives"
SKU, PLAN = "marketplace-sku-456", "professional"
BOLD, DIM, GREEN, RED, PLAIN = (
    ("\033[1m", "\033[2m", "\033[32m", "\033[31m", "\033[0m") if sys.stdout.isatty() else ("", "", "", "", ""))


class Broken(Exception):
    """A step did not hold."""


def tell(text: str = "") -> None:
    print(text, flush=True)


def chapter(title: str) -> None:
    tell(f"\n{BOLD}{title}{PLAIN}")


class Story:
    def __init__(self, stack: Stack):
        self.stack = stack
        self.env = stack.env
        self.steps: list[tuple[str, float, float | None]] = []
        self.shown: dict[str, int] = {}
        self.table = stack.client("dynamodb")
        self.s3 = stack.client("s3")
        self.lambda_ = stack.client("lambda")

    # -------------------------------------------------------------- means

    def ggen(self, *arguments: str, good: tuple[int, ...] = (0,), environment: dict[str, str] | None = None) -> str:
        environment = {**os.environ, **self.env, **(environment or {})}
        done = subprocess.run([self.env["GGEN"], *map(str, arguments)], capture_output=True, text=True,
                              env=environment, timeout=120, cwd=ROOT)
        if done.returncode not in good:
            raise Broken(f"ggen {' '.join(map(str, arguments[:2]))} exited {done.returncode}: "
                         f"{(done.stderr or done.stdout).strip()}")
        return done.stdout.strip()

    def post(self, path: str, provider: str, body: dict) -> dict:
        """Posts a signed webhook, as its sender would, and returns the receipt that answers it."""
        file = self.stack.dir / "tmp" / "webhook.json"
        file.write_text(json.dumps(body))
        headers = json.loads(self.ggen("webhook", "sign", "--provider", provider, "--body", str(file),
                                       "--id", f"story-{uuid.uuid4()}", "--format", "json"))
        request = urllib.request.Request(self.env["API_URL"] + path, file.read_bytes(), headers, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as refused:
            raise Broken(f"POST {path} was answered {refused.code}: {refused.read().decode(errors='replace')}") from None

    def ledger(self, account: str) -> list[dict]:
        lines, start = [], None
        while True:
            more = {"ExclusiveStartKey": start} if start else {}
            page = self.table.query(TableName=self.env["RECEIPTS_TABLE"], KeyConditionExpression="account_id = :a",
                                    ExpressionAttributeValues={":a": {"S": account}}, **more)
            lines += [json.loads(item["line"]["S"]) for item in page["Items"]]
            start = page.get("LastEvaluatedKey")
            if not start:
                return lines

    def show_new(self, account: str) -> list[dict]:
        """Prints the receipts that came since the last look."""
        ledger = self.ledger(account)
        for receipt in ledger[self.shown.get(account, 0):]:
            details = {name: receipt[name] for name in (
                "code", "action_id", "template", "rules", "error_code", "policy_version", "previous_version",
                "concurrency", "cost_delta_usd", "note", "failure_count", "actions_refused", "downtime_seconds", "reason", "receipts_archived") if name in receipt}
            shown = " ".join(f"{name}={value if isinstance(value, str) else json.dumps(value)}"
                             for name, value in details.items() if value not in ("", []))
            tell(f"   receipt {account}#{receipt['seq']:<3} {GREEN}{receipt['operation']:<22}{PLAIN} "
                 f"{receipt['duration_ms']:>6} ms  {DIM}{shown}{PLAIN}")
        self.shown[account] = len(ledger)
        return ledger

    def await_receipts(self, account: str, wanted: dict[str, int], seconds: float) -> list[dict]:
        """Waits until the ledger holds at least so many receipts of each operation."""
        deadline = time.monotonic() + seconds
        while True:
            ledger = self.show_new(account)
            counts: dict[str, int] = {}
            for receipt in ledger:
                counts[receipt["operation"]] = counts.get(receipt["operation"], 0) + 1
            if all(counts.get(operation, 0) >= count for operation, count in wanted.items()):
                return ledger
            if time.monotonic() > deadline:
                raise Broken(f"ledger of {account} has {counts} after {seconds:.0f} s, wanted {wanted}")
            time.sleep(0.05)

    def step(self, name: str, began: float, target: float | None = None) -> None:
        took = time.monotonic() - began
        self.steps.append((name, took, target))
        late = target is not None and took > target
        aim = f"  (target {target:g} s)" if target is not None else ""
        tell(f"   {RED if late else ''}{took:6.2f} s  {name}{aim}{PLAIN}")

    def signal(self, account: str, template: str, **parameters) -> str:
        action = str(uuid.uuid4())
        self.ggen("send-signal", "--account-id", account, "--template", template, "--action-id", action,
                  "--parameters", json.dumps(parameters))
        return action

    def ask(self, account: str, method: str, path: str, body: dict | None, delivery: str) -> tuple[int, dict]:
        """Asks the front door as a producer does, signed with the secret of this account; the status and the answer."""
        file = self.stack.dir / "tmp" / "request.json"
        file.write_text(json.dumps(body) if body else "")
        environment = {"PRODUCER": self.ggen("keys", "producer", "--account-id", account)}
        headers = json.loads(self.ggen("webhook", "sign", "--provider", "standard", "--secret-env", "PRODUCER", "--body",
                                       str(file), "--id", delivery, "--format", "json", environment=environment))
        request = urllib.request.Request(self.env["API_URL"] + path, file.read_bytes() or None, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as refused:
            return refused.code, json.loads(refused.read())

    def control(self) -> dict:
        answer = self.s3.get_object(Bucket=self.env["CONTROL_BUCKET"], Key="control.json")
        return json.loads(answer["Body"].read())

    def await_mode(self, mode: str, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self.control()["mode"] != mode:
            if time.monotonic() > deadline:
                raise Broken(f"mode is not {mode} after {seconds:.0f} s")
            time.sleep(0.1)

    # -------------------------------------------------------------- chapters

    def compliance(self) -> None:
        chapter("Compliance deploys the sample policies; an operator arms the system")
        for policy in local.SAMPLE_POLICIES:
            began = time.monotonic()
            self.ggen("policy", "deploy", str(POLICIES / f"{policy}.yaml"))
            self.step(f"policy {policy} compiled, stored by hash, in force", began)
        began = time.monotonic()
        self.ggen("switches", "set", *local.ARMED, "--who", "story")
        self.step("switches set", began)
        self.show_new("_system")

    def github_tenant(self) -> None:
        chapter("GitHub Marketplace: purchased, worked for, cancelled")
        purchased = json.loads((GITHUB / "purchased.json").read_text())
        cancelled = json.loads((GITHUB / "cancelled.json").read_text())
        cancelled["marketplace_purchase"]["account"] = purchased["marketplace_purchase"]["account"]
        account = f"github-{purchased['marketplace_purchase']['account']['id']}"
        began = time.monotonic()
        self.post("/webhooks/github", "github", purchased)
        self.step("webhook → entitlement_active", began, 2)
        self.show_new(account)
        began = time.monotonic()
        self.signal(account, "restart-service", service="web")
        self.await_receipts(account, {"action_complete": 1}, 20)
        self.step("first signal → action_complete", began, 1)
        began = time.monotonic()
        self.post("/webhooks/github", "github", cancelled)
        self.step("webhook → decommission_start", began, 2)
        self.await_receipts(account, {"decommission_complete": 1}, 60)
        self.step("webhook → decommission_complete", began, 40)
        self.archive(account)

    def standard_tenant(self) -> None:
        account = "customer-123"
        chapter(f"Standard Webhooks: {account} subscribes to {SKU}, plan {PLAN}")
        began = time.monotonic()
        self.post("/webhooks/entitlement", "standard", {
            "type": "entitlement.created", "timestamp": now(),
            "data": {"account_id": account, "sku_id": SKU, "plan_type": PLAN, "region": "us-east-1"}})
        self.step("webhook → entitlement_active", began, 2)
        self.show_new(account)

        chapter("Signals: one succeeds, one is too slow, one fails, one is against the policy")
        began = time.monotonic()
        self.signal(account, "restart-service", service="api")
        self.await_receipts(account, {"action_complete": 1}, 20)
        self.step("first signal → action_complete", began, 1)
        began = time.monotonic()
        slow = self.signal(account, "restart-service", service="api", delay_ms=5_000)
        self.signal(account, "restart-service", service="api", outcome="fail")
        self.signal(account, "scale-service", service="api", replicas=15)
        ledger = self.await_receipts(account, {"action_timeout": 1, "action_rolled_back": 2, "action_refused": 1}, 20)
        self.step("timed out and undone, failed and undone, denied", began)
        undone = [r for r in ledger if r["operation"] == "action_rolled_back" and r["action_id"] == slow]
        log = self.handler_log(slow)
        if not undone or log["applied"] or not log["undone"]:
            raise Broken(f"the slow action is not undone at the handler: {log}")

        self.front_door(account)
        self.escalated(account)

        chapter("Compliance raises the limit: version 1.1.0, hot-reloaded")
        began = time.monotonic()
        self.ggen("policy", "deploy", str(POLICIES / SKU / "next" / f"{PLAN}.yaml"))
        self.await_receipts(account, {"policy_upgraded": 1}, 20)
        self.step("policy 1.1.0 in force, tenant re-pinned", began)
        began = time.monotonic()
        self.signal(account, "scale-service", service="api", replicas=15)
        self.await_receipts(account, {"action_complete": 3}, 20)
        self.step("what was denied is allowed", began, 1)
        self.degraded(account)
        self.audited(account)
        self.cancel(account)

    def front_door(self, account: str) -> None:
        chapter("A producer asks over HTTP, and is told at once what the policy does not allow")
        action = f"story-{uuid.uuid4()}"
        asked = {"template": "restart-service", "parameters": {"service": "api"}}
        began = time.monotonic()
        status, answer = self.ask(account, "POST", f"/tenants/{account}/signals", asked, action)
        if status != 202:
            raise Broken(f"the front door answered {status}: {answer}")
        self.step("signal posted → 202", began, 1)
        self.await_receipts(account, {"action_complete": 2}, 20)
        self.step("signal posted → action_complete", began, 1)
        status, answer = self.ask(account, "GET", f"/tenants/{account}/actions/{action}", None, action)
        if (status, answer.get("state")) != (200, "complete"):
            raise Broken(f"the action is told as {status}: {answer}")
        tell(f"   GET tells: {answer['state']}, receipts {', '.join(answer['receipt_ids'])}")
        too_many = {"template": "scale-service", "parameters": {"service": "api", "replicas": 15}}
        status, answer = self.ask(account, "POST", f"/tenants/{account}/signals", too_many, f"story-{uuid.uuid4()}")
        if (status, answer.get("code")) != (403, "DENIED"):
            raise Broken(f"what the policy denies is answered {status}: {answer}")
        tell(f"   {status} {answer['code']} {answer['rules']}: {answer['detail']}")
        self.await_receipts(account, {"signal_refused": 1}, 20)

    def escalated(self, account: str) -> None:
        chapter("What can be neither done nor undone waits for a person; more hands for a busy tenant")
        began = time.monotonic()
        action = self.signal(account, "restart-service", service="api", outcome="fail-unrecoverable")
        self.await_receipts(account, {"action_failed": 2}, 20)
        self.step("unrecoverable failure → escalated", began)
        # Exit code 1: somebody has to look.
        listed = self.ggen("escalations", "--account-id", account, good=(1,))
        tell("   " + listed.replace("\n", "\n   "))
        if action not in listed:
            raise Broken(f"ggen escalations does not list {action}")
        began = time.monotonic()
        self.ggen("resolve", action, "--account-id", account, "--note", "restarted by hand", "--who", "story")
        self.await_receipts(account, {"action_resolved": 1}, 20)
        self.step("a person resolved it, on record", began)
        began = time.monotonic()
        self.ggen("scale", "--account-id", account, "--concurrency", "20")
        self.await_receipts(account, {"governor_scaled": 1}, 20)
        self.step("governor scaled from 10 to 20 actions at one time", began)

    def audited(self, account: str) -> None:
        chapter("An auditor asks, with nothing but the public key")
        key = ("--public-key", self.env["AUDITOR_PUB"])
        began = time.monotonic()
        note = self.ggen("checkpoint", "--account-id", account, *key)
        for line in note.splitlines()[:3]:
            tell(f"   {DIM}{line}{PLAIN}")
        self.step("ledger's end signed", began)
        began = time.monotonic()
        answer = self.ggen("audit", "--account-id", account, *key)
        tell("   " + answer.replace("\n", "\n   "))
        self.step("live ledger audited", began)
        began = time.monotonic()
        receipt = self.ledger(account)[0]
        line, proof = (self.stack.dir / "tmp" / name for name in ("receipt.json", "receipt.tlog-proof"))
        proof.write_text(self.ggen("prove", "--receipt-id", receipt["receipt_id"], "--receipt", str(line), *key) + "\n")
        answer = self.ggen("verify-receipt", "--receipt", str(line), "--proof", str(proof), *key)
        tell(f"   {answer.splitlines()[-1].strip()}")
        self.step("one receipt proved and verified offline", began)

    def degraded(self, account: str) -> None:
        chapter("Storage fails: DynamoDB refuses every call")
        self.stack.fault("dynamodb", {"mode": "refuse"})
        began = time.monotonic()
        # The schedule's own event. Waiting for the next full minute would show nothing more.
        self.lambda_.invoke(FunctionName=self.env["HEALTH_FUNCTION"], InvocationType="Event",
                            Payload=json.dumps({"probes": 6, "interval_seconds": 10}).encode())
        self.await_mode("degraded", 60)
        self.step("storage failed → degraded (three probes, 10 s apart)", began, 35)
        began = time.monotonic()
        refused = self.refuse_one(account)
        self.step("signal refused with a receipt in the spool", began)
        tell("   storage is back")
        self.stack.fault("dynamodb", None)
        began = time.monotonic()
        self.await_mode("normal", 60)
        self.step("storage back → normal (one good probe)", began, 12)
        self.await_receipts("_system", {"degraded_mode": 1, "degraded_mode_cleared": 1}, 30)
        ledger = self.await_receipts(account, {"action_refused": 2}, 30)
        if not any(r.get("action_id") == refused and r.get("code") == "UNAVAILABLE" for r in ledger):
            raise Broken(f"the refusal of {refused} is not in the ledger")
        self.step("spooled receipts appended to their ledgers", began)
        began = time.monotonic()
        self.signal(account, "restart-service", service="api")
        self.await_receipts(account, {"action_complete": 4}, 20)
        self.step("signals run again", began, 1)

    def refuse_one(self, account: str) -> str:
        """Sends a signal while the tables do not work: straight to the queue, as a producer would."""
        queues = self.stack.client("sqs").list_queues(QueueNamePrefix=f"{self.env['QUEUE_PREFIX']}-t-{account}")
        url = next(url for url in queues["QueueUrls"] if not url.endswith("-dlq"))
        action = str(uuid.uuid4())
        body = {"action_id": action, "account_id": account, "template": "restart-service",
                "parameters": {"service": "api"}, "policy_hash": "0" * 64}
        self.stack.client("sqs").send_message(QueueUrl=url, MessageBody=json.dumps(body))
        deadline = time.monotonic() + 20
        while True:
            kept = self.s3.list_objects_v2(Bucket=self.env["AUDIT_BUCKET"], Prefix="_spool/").get("Contents", [])
            for item in kept:
                if not item["Key"].endswith("-action_refused.json"):
                    continue
                line = self.s3.get_object(Bucket=self.env["AUDIT_BUCKET"], Key=item["Key"])["Body"].read()
                if json.loads(line)["action_id"] == action:
                    tell(f"   spooled {item['Key']}")
                    return action
            if time.monotonic() > deadline:
                raise Broken("the refused signal left no receipt in the spool within 20 s")
            time.sleep(0.05)

    def cancel(self, account: str) -> None:
        chapter(f"{account} cancels")
        began = time.monotonic()
        self.post("/webhooks/cancel", "standard", {
            "type": "entitlement.cancelled", "timestamp": now(), "data": {"account_id": account, "sku_id": SKU}})
        self.step("webhook → decommission_start", began, 2)
        self.await_receipts(account, {"decommission_complete": 1}, 60)
        self.step("webhook → decommission_complete", began, 40)
        self.archive(account)

    def archive(self, account: str) -> None:
        """Downloads the archive and lets the auditor's tool check it, with nothing but the public key."""
        closing = self.ledger(account)[-1]
        bucket, key = closing["archive_path"].removeprefix("s3://").split("/", 1)
        beside = key.removesuffix(".tar.gz")
        ARCHIVES.mkdir(parents=True, exist_ok=True)
        files = []
        for name in (key, f"{beside}.closing.json", f"{beside}.closing.checkpoint"):
            file = ARCHIVES / name.replace("/", "-")
            deadline = time.monotonic() + 10
            while True:
                try:
                    file.write_bytes(self.s3.get_object(Bucket=bucket, Key=name)["Body"].read())
                    break
                except self.s3.exceptions.NoSuchKey:
                    # The closing receipt is committed just before it, and then its checkpoint, stand beside the archive.
                    if time.monotonic() > deadline:
                        raise Broken(f"s3://{bucket}/{name} is not there") from None
                    time.sleep(0.05)
            files.append(file)
        tell(f"   archive {closing['archive_path']}\n           {files[0].relative_to(ROOT)}")
        began = time.monotonic()
        answer = self.ggen("verify-archive", str(files[0].relative_to(ROOT)), "--public-key", self.env["AUDITOR_PUB"],
                           "--closing", str(files[1]), "--closing-checkpoint", str(files[2]))
        for line in answer.splitlines():
            tell(f"   {GREEN}{line}{PLAIN}" if line.startswith("VERIFIED") else f"   {line}")
        if not answer.startswith("VERIFIED"):
            raise Broken("ggen verify-archive did not say VERIFIED")
        self.step("archive verified offline", began)

    def handler_log(self, action: str) -> dict:
        with urllib.request.urlopen(f"{self.env['HANDLER_URL']}/log?action_id={action}", timeout=10) as answer:
            return json.loads(answer.read())

    # -------------------------------------------------------------- the end

    def summary(self) -> bool:
        chapter("Every step, against its target")
        held = True
        for name, took, target in self.steps:
            late = target is not None and took > target
            held = held and not late
            mark = f"{RED}late{PLAIN}" if late else f"{GREEN}ok{PLAIN}"
            tell(f"   {took:7.2f} s  {f'< {target:g} s' if target is not None else '':>7}  {mark:<4}  {name}")
        return held

    def invitation(self) -> None:
        body = json.loads((GITHUB / "purchased.json").read_text())
        body["marketplace_purchase"]["account"]["id"] = 4242
        file = self.stack.dir / "purchased.json"
        file.write_text(json.dumps(body))
        curl = self.ggen("webhook", "sign", "--provider", "github", "--body", str(file), "--id", f"own-{uuid.uuid4()}",
                         "--curl", "--url", self.env["API_URL"] + "/webhooks/github")
        chapter("Now you. Post a purchase of your own:")
        tell(f"\n{curl}\n")
        tell("and look at what came of it:\n")
        tell("  . target/local-cloud/env.sh")
        tell("  $GGEN send-signal --account-id github-4242 --template restart-service --parameters '{\"service\":\"web\"}'")
        tell("  $GGEN export-receipts --account-id github-4242 --public-key $AUDITOR_PUB")
        tell("\nCtrl-C ends it.")


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def main() -> int:
    local.exit_on_signals()
    once = os.environ.get("ONCE", "") not in ("", "0")
    try:
        with Stack(int(os.environ.get("PORT") or 4566), health_schedule=True, for_other_shells=True) as stack:
            story = Story(stack)
            try:
                story.compliance()
                story.github_tenant()
                story.standard_tenant()
                held = story.summary()
            except Broken as broken:
                story.summary()
                tell(f"\n{RED}A step did not hold: {broken}{PLAIN}\nLogs: {stack.dir.relative_to(ROOT)}")
                held = False
            if once or not held:
                tell(f"\n{BOLD}{'Every step held.' if held else 'Not every step held.'}{PLAIN}")
                return 0 if held else 1
            story.invitation()
            while True:
                time.sleep(3600)
    except StackError as error:
        print(f"run: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
