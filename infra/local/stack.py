#!/usr/bin/env python3
"""The whole system on one machine: local cloud, proxy, sample action handler, and infra/template.yaml deployed to it.

    stack.py exec [options] -- COMMAND...   runs COMMAND with the stack's environment; exits as it does
    stack.py up [options]                   with the sample policies in force and armed, until Ctrl-C;
                                            `. target/local-cloud/env.sh` in another shell

Everything listens on 127.0.0.1 only, and whatever is started here is gone when this process is.
"""

import argparse
import contextlib
import ctypes
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
BASE = ROOT / "target" / "local-cloud"
ENV = BASE / "env.sh"
TEMPLATE = ROOT / "infra" / "template.yaml"
FUNCTIONS = ["entitlement", "cancel", "policy-upgrade", "governor", "health", "checkpoint", "scale", "signals"]
SAMPLE_POLICIES = ["marketplace-sku-456/professional", "github-marketplace/basic", "github-marketplace/premium"]
ARMED = ["armed=true", "automation_enabled=true", "safe_mode=false", "rollout_tier=2", "disabled_templates="]
STACK_NAME = "governor"
REGION = "us-east-1"
LOOPBACK = "127.0.0.1"
STARTED = time.monotonic()


class StackError(Exception):
    """The stack cannot start; the message is one line for the person at the terminal."""


def say(text: str) -> None:
    print(f"[{time.monotonic() - STARTED:6.1f} s] {text}", file=sys.stderr, flush=True)


# ------------------------------------------------------------------ processes


def start(command: list, log: Path, env: dict | None = None, **more) -> subprocess.Popen:
    """Starts a child in a session of its own, so that ending its group ends all that it started; if this process is
    killed outright, the kernel ends the child."""
    libc = ctypes.CDLL(None)
    parent = os.getpid()

    def die_with_parent():
        libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)

    with log.open("ab") as output:
        more = {"stdout": output, "stderr": output, **more}
        return subprocess.Popen(
            [str(part) for part in command], env=env, stdin=subprocess.DEVNULL,
            start_new_session=True, preexec_fn=die_with_parent, **more)


def adopt_orphans() -> None:
    """Lets this process inherit the children of a child that died, so that it can see to their end."""
    ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER


def end(process: subprocess.Popen, grace: float = 0.0) -> None:
    """Ends a child and everything in its group, and waits until they are gone; with `grace`, asks first."""
    if grace:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-process.pid, 0)


def first_json_line(process: subprocess.Popen, name: str, log: Path, seconds: float = 10.0) -> dict:
    """What a child prints first; the rest of its standard output is thrown away, so that it never blocks on it."""
    found: list = []
    ready = threading.Event()

    def read():
        for line in process.stdout:
            if not ready.is_set():
                found.append(line)
                ready.set()
        ready.set()

    threading.Thread(target=read, daemon=True).start()
    ready.wait(seconds)
    try:
        return json.loads(found[0])
    except (IndexError, ValueError):
        with contextlib.suppress(subprocess.TimeoutExpired):
            raise StackError(f"{name} ended with code {process.wait(0.2)}; see {log}") from None
        raise StackError(f"{name} did not print its address within {seconds:.0f} s; see {log}") from None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return probe.getsockname()[1]


def is_taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return True
    return False


# ------------------------------------------------------------------ the stack


class Stack:
    """`with Stack() as stack:` — `stack.env` is the environment for what drives it. Enter it on the main thread: the
    kernel ties the children's lives to the thread that starts them."""

    def __init__(self, port: int = 0, health_schedule: bool = False, handler_url: str | None = None,
                 for_other_shells: bool = False):
        """`for_other_shells` puts the environment where a person's other shells find it, target/local-cloud/env.sh."""
        self.for_other_shells = for_other_shells
        self.wanted_port = port
        self.health_schedule = health_schedule
        self.handler_url = handler_url
        self.env: dict[str, str] = {}
        self.children: list = []
        self.dir = BASE / f"run-{os.getpid()}-{id(self):x}"

    def __enter__(self) -> "Stack":
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_exception) -> None:
        self.close()

    def close(self) -> None:
        # A second Ctrl-C must not interrupt the clean-up that the first one asked for.
        with signals_ignored():
            for process in reversed(self.children):
                end(process)
            self.children.clear()
            for name in ("state", "tmp"):
                shutil.rmtree(self.dir / name, ignore_errors=True)
            if ENV.is_symlink() and ENV.readlink() == self.env_file:
                ENV.unlink()

    @property
    def env_file(self) -> Path:
        return self.dir / "env.sh"

    # -- what tests and the story steer

    def client(self, service: str, **options):
        """A boto3 client of the local cloud."""
        import boto3

        return boto3.client(
            service, endpoint_url=self.env["AWS_ENDPOINT_URL"], region_name=REGION,
            aws_access_key_id="test", aws_secret_access_key="test", **options)

    def fault(self, service: str, rule: dict | None) -> None:
        """Sets a fault of the functions' calls to a service (see proxy.py), or clears it with None."""
        request(f"{self.env['PROXY_URL']}/_faults/{service}", "PUT" if rule else "DELETE", rule)

    def calls(self) -> list[dict]:
        """The functions' AWS calls since the last `forget_calls`, oldest first."""
        return json.loads(request(f"{self.env['PROXY_URL']}/_calls"))

    def forget_calls(self) -> None:
        request(f"{self.env['PROXY_URL']}/_calls", "DELETE")

    # -- how it comes up

    def _start(self) -> None:
        ggen, zips = built()
        adopt_orphans()
        port = self.wanted_port or free_port()
        if is_taken(port):
            raise StackError(f"port {port} on {LOOPBACK} is taken: stop what uses it, or choose another with PORT=…")
        forget_dead_runs()
        for name in ("state", "tmp"):
            (self.dir / name).mkdir(parents=True)
        secrets, public_key = dev_secrets(ggen)

        endpoint = f"http://{LOOPBACK}:{port}"
        proxy_url = self._start_proxy(port)
        self._start_cloud(port, proxy_url)
        self.env = {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "PROXY_URL": proxy_url,
            "GGEN": str(ggen),
            "AUDITOR_PUB": str(public_key),
            **{f"{name.upper()}_WEBHOOK_SECRET": secrets[name] for name in webhook_senders()},
            "HANDLER_SECRET": secrets["handler"],
            "PRODUCER_SECRET": secrets["producer"],
        }
        handler_url = self.handler_url or self._start_handler(ggen, secrets["handler"])
        outputs = self._deploy(zips, handler_url)
        self.env.update({variable(name): value for name, value in outputs.items()})
        # The local CloudFormation passes over ObjectLockEnabled, which the template says of this bucket.
        self.client("s3").put_object_lock_configuration(
            Bucket=outputs["AuditBucket"], ObjectLockConfiguration={"ObjectLockEnabled": "Enabled"})
        # As on AWS, only with a path where AWS has a host name of its own.
        self.env["API_URL"] = f"{endpoint}/_aws/execute-api/{outputs['ApiId']}/$default"
        self.env["HANDLER_URL"] = handler_url
        self._put_secrets(secrets)
        self._write_env()
        say(f"ready on {endpoint}")

    def _start_proxy(self, cloud_port: int) -> str:
        log = self.dir / "proxy.log"
        process = start([sys.executable, HERE / "proxy.py", "--upstream", f"{LOOPBACK}:{cloud_port}"], log,
                        stdout=subprocess.PIPE, text=True)
        self.children.append(process)
        return "http://" + first_json_line(process, "the proxy", log)["address"]

    def _start_cloud(self, port: int, proxy_url: str) -> None:
        say(f"starting the local cloud on {LOOPBACK}:{port}")
        log = self.dir / "cloud.log"
        # The functions inherit this environment whole, so it holds nothing of the caller's; and AWS_ENDPOINT_URL is
        # what they are given, so their calls go through the proxy.
        env = {
            "PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(self.dir / "tmp"), "TMPDIR": str(self.dir / "tmp"),
            "BIND_HOST": LOOPBACK, "MINISTACK_HOST": LOOPBACK, "GATEWAY_PORT": str(port), "MINISTACK_REGION": REGION,
            "IOT_MTLS_ENABLED": "0", "PERSIST_STATE": "0", "S3_PERSIST": "0",
            "STATE_DIR": str(self.dir / "state"), "S3_DATA_DIR": str(self.dir / "state" / "s3"),
            "AWS_ENDPOINT_URL": proxy_url, "PYTHONDONTWRITEBYTECODE": "1",
        }
        process = start([sys.executable, HERE / "launcher.py"], log, env, cwd=self.dir)
        self.children.append(process)
        deadline = time.monotonic() + 30
        while True:
            if process.poll() is not None:
                raise StackError(f"the local cloud ended with code {process.returncode}; see {log}")
            with contextlib.suppress(OSError):
                request(f"http://{LOOPBACK}:{port}/_ministack/health", timeout=1)
                return
            if time.monotonic() > deadline:
                raise StackError(f"the local cloud did not answer within 30 s; see {log}")
            time.sleep(0.05)

    def _start_handler(self, ggen: Path, secret: str) -> str:
        log = self.dir / "handler.log"
        process = start([ggen, "handler", "--listen", f"{LOOPBACK}:0"], log,
                        {"HANDLER_SECRET": secret}, stdout=subprocess.PIPE, text=True)
        self.children.append(process)
        answer = first_json_line(process, "ggen handler", log)
        address = re.search(r"\d+\.\d+\.\d+\.\d+:\d+", json.dumps(answer))
        if not address:
            raise StackError(f"ggen handler printed no address but {json.dumps(answer)}")
        return f"http://{address.group()}"

    def _deploy(self, zips: dict[str, Path], handler_url: str) -> dict[str, str]:
        """What `sam deploy` does: zips to a bucket, their addresses into a copy of the template, then the stack."""
        say("deploying infra/template.yaml")
        s3, cloudformation = self.client("s3"), self.client("cloudformation")
        bucket = f"{STACK_NAME}-artifacts"
        s3.create_bucket(Bucket=bucket)
        template = TEMPLATE.read_text()
        for name, path in zips.items():
            s3.put_object(Bucket=bucket, Key=f"{name}.zip", Body=path.read_bytes())
            template, replaced = re.subn(
                rf"(CodeUri: )\.\./target/lambda/{name}/bootstrap\.zip", rf"\1s3://{bucket}/{name}.zip", template)
            if replaced != 1:
                raise StackError(f"{TEMPLATE} has no CodeUri ../target/lambda/{name}/bootstrap.zip")
        parameters = {
            "Stage": "dev",
            "HandlerBaseUrl": handler_url,
            "HandlerNetworks": "127.0.0.0/8",
            "HealthSchedule": "ENABLED" if self.health_schedule else "DISABLED",
            "CheckpointSchedule": "DISABLED",
            "ScaleSchedule": "ENABLED" if self.health_schedule else "DISABLED",
            "RetentionDays": "1",
        }
        # A template of more than 51,200 bytes is taken from a bucket only.
        s3.put_object(Bucket=bucket, Key="template.yaml", Body=template.encode())
        address = f"{self.env['AWS_ENDPOINT_URL']}/{bucket}/template.yaml"
        cloudformation.create_stack(
            StackName=STACK_NAME, TemplateURL=address, Capabilities=["CAPABILITY_IAM", "CAPABILITY_AUTO_EXPAND"],
            Parameters=[{"ParameterKey": k, "ParameterValue": v} for k, v in parameters.items()])
        deadline = time.monotonic() + 60
        while True:
            stack = cloudformation.describe_stacks(StackName=STACK_NAME)["Stacks"][0]
            if stack["StackStatus"] == "CREATE_COMPLETE":
                return {o["OutputKey"]: o["OutputValue"] for o in stack["Outputs"]}
            if stack["StackStatus"] != "CREATE_IN_PROGRESS" or time.monotonic() > deadline:
                events = cloudformation.describe_stack_events(StackName=STACK_NAME)["StackEvents"]
                failed = [e for e in events if e["ResourceStatus"].endswith("FAILED")]
                why = "; ".join(f"{e['LogicalResourceId']}: {e.get('ResourceStatusReason', '')}" for e in failed[::-1])
                raise StackError(f"deployment ended as {stack['StackStatus']}: {why or 'no reason given'}")
            time.sleep(0.05)

    def _put_secrets(self, secrets: dict[str, str]) -> None:
        client = self.client("secretsmanager")
        names = {f"{name.upper()}_WEBHOOK": name for name in webhook_senders()}
        names |= {"SIGNING_KEY": "signing_key", "HANDLER": "handler", "PRODUCER": "producer"}
        for variable_name, key in names.items():
            client.put_secret_value(SecretId=self.env[f"{variable_name}_SECRET_ID"], SecretString=secrets[key])

    def _write_env(self) -> None:
        quoted = {name: "'" + value.replace("'", "'\\''") + "'" for name, value in sorted(self.env.items())}
        self.env_file.write_text("".join(f"export {name}={value}\n" for name, value in quoted.items()))
        self.env_file.chmod(0o600)
        if not self.for_other_shells:
            return
        # Whoever came first keeps it: another shell that reads it anew must not end up at another stack.
        if ENV.is_symlink() and is_alive(ENV.readlink().parent):
            say(f"another stack has {shown(ENV)}: `. {shown(self.env_file)}` gives a shell the environment of this one")
            return
        link = BASE / f".env-{os.getpid()}"
        link.unlink(missing_ok=True)
        link.symlink_to(self.env_file)
        link.replace(ENV)

    def fill(self) -> None:
        """Puts the sample policies in force and arms the stack, so that customers can subscribe at once."""
        say("putting the sample policies in force and arming")
        for policy in SAMPLE_POLICIES:
            self.ggen("policy", "deploy", ROOT / "policies" / f"{policy}.yaml")
        self.ggen("switches", "set", *ARMED, "--who", "make-up")

    def ggen(self, *arguments) -> str:
        own = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        done = subprocess.run([self.env["GGEN"], *map(str, arguments)], capture_output=True, text=True,
                              env={**own, **self.env}, timeout=120, cwd=ROOT)
        if done.returncode:
            said = (done.stderr or done.stdout).strip()
            raise StackError(f"ggen {' '.join(map(str, arguments[:2]))} exited {done.returncode}: {said}")
        return done.stdout.strip()


def variable(output: str) -> str:
    """SigningKeySecretId → SIGNING_KEY_SECRET_ID"""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", output).upper()


def request(url: str, method: str = "GET", body: dict | None = None, timeout: float = 10) -> bytes:
    data = json.dumps(body).encode() if body is not None else None
    with urllib.request.urlopen(urllib.request.Request(url, data, method=method), timeout=timeout) as answer:
        return answer.read()


def built() -> tuple[Path, dict[str, Path]]:
    """ggen and the functions' zips, as `make build` leaves them."""
    zips = {name: ROOT / "target" / "lambda" / name / "bootstrap.zip" for name in FUNCTIONS}
    # Under target/<host>/ when a build names its target, as cargo-lambda does, else under target/ itself.
    target = ROOT / "target"
    builds = [*target.glob("local/ggen"), *target.glob("*/local/ggen")]
    newest = max(builds, key=lambda path: path.stat().st_mtime, default=target / "local/ggen")
    ggen = Path(os.environ.get("GGEN") or newest)
    for path in (ggen, *zips.values()):
        if not path.exists():
            raise StackError(f"{shown(path)} is missing: run `make build` first")
    try:
        import boto3  # noqa: F401
        import ministack  # noqa: F401
        import samtranslator  # noqa: F401
    except ImportError as error:
        raise StackError(f"Python package {error.name} is missing: run `make setup`, and .venv/bin/python") from None
    return ggen, zips


def webhook_senders() -> list[str]:
    """Whose webhooks are taken, by the outputs of the template: each has a secret of its own."""
    return [variable(name).lower() for name in re.findall(r"^  (\w+)WebhookSecretId:", TEMPLATE.read_text(), re.MULTILINE)]


def dev_secrets(ggen: Path) -> tuple[dict[str, str], Path]:
    """Secrets of this checkout, made once: an archive from yesterday's run still verifies today."""
    store, private_key, public_key = BASE / "dev-secrets.json", BASE / "signing.pem", BASE / "auditor.pub"

    def keys(*arguments) -> str:
        made = subprocess.run([ggen, "keys", *arguments], capture_output=True, text=True)
        if made.returncode:
            raise StackError(f"ggen keys {arguments[0]} failed: {made.stderr.strip()}")
        return made.stdout.strip()

    if not store.exists():
        say("making a dev signing key and webhook secrets")
        private_key.unlink(missing_ok=True)
        public_key.unlink(missing_ok=True)
        keys("generate", "--private", private_key, "--public", public_key)
        store.touch(mode=0o600)
        # GitHub's own published example, so that the signed sample events in events/ stay valid.
        store.write_text(json.dumps({"github": "It's a Secret to Everybody"}))
    secrets = json.loads(store.read_text())
    # Also those that an older checkout made none of.
    missing = [name for name in (*webhook_senders(), "handler", "producer") if name not in secrets]
    if missing:
        secrets.update({name: keys("secret") for name in missing})
        store.write_text(json.dumps(secrets, indent=2))
    return {"signing_key": private_key.read_text(), **secrets}, public_key


def forget_dead_runs() -> None:
    """Removes the logs of runs whose process is gone; the last run's are there until the next one starts."""
    for directory in BASE.glob("run-*"):
        if not is_alive(directory):
            shutil.rmtree(directory, ignore_errors=True)


def is_alive(directory: Path) -> bool:
    """Whether the process of a run is there."""
    try:
        os.kill(int(directory.name.split("-")[1]), 0)
    except (ProcessLookupError, ValueError, IndexError):
        return False
    except PermissionError:
        pass  # someone else's
    return True


def shown(path: Path) -> Path:
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


# ------------------------------------------------------------------ the command line


@contextlib.contextmanager
def signals_ignored():
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    names = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {name: signal.signal(name, signal.SIG_IGN) for name in names}
    try:
        yield
    finally:
        for name, action in before.items():
            signal.signal(name, action)


def exit_on_signals() -> None:
    """Makes SIGTERM and SIGHUP unwind like Ctrl-C, so that what was started is ended."""

    def stop(number, _frame):
        raise SystemExit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)


def run(command: list[str], env: dict[str, str]) -> int:
    """Runs a command in a session of its own; whatever happens, none of it stays."""
    try:
        # Nothing of the caller's own AWS account may reach what runs here.
        own = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        process = start(command, Path(os.devnull), {**own, **env}, stdout=None, stderr=None)
    except OSError as error:
        raise StackError(f"cannot run {command[0]}: {error.strerror}") from None
    try:
        code = process.wait()
    finally:
        with signals_ignored():
            end(process, grace=0.0 if process.poll() is not None else 3.0)
    return 128 - code if code < 0 else code


def parsed(own: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options and the command of a command line; ends the process on wrong usage, as argparse does."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("action", choices=["exec", "up"])
    parser.add_argument("--port", type=int, default=int(os.environ.get("PORT") or 0),
                        help="of the local cloud; PORT, or a free one, when not given")
    parser.add_argument("--health-schedule", action="store_true",
                        help="let the schedule run health checks every minute")
    parser.add_argument("--handler-url", metavar="URL",
                        help="a handler of your own, instead of the sample one: https, or http at 127.0.0.1")
    parser.add_argument("--empty", action="store_true",
                        help="up: no policy in force, and disarmed, as a new stack on AWS is")
    command: list[str] = []
    if "--" in own:
        cut = own.index("--")
        own, command = own[:cut], own[cut + 1:]
    options = parser.parse_args(own)
    if options.handler_url and not re.match(r"https://[^/]|http://127\.\d+\.\d+\.\d+(:\d+)?(/|$)", options.handler_url):
        parser.error(f"{options.handler_url} is not an https URL, nor http at 127.0.0.1: no other handler would be called")
    if (options.action == "exec") != bool(command):
        parser.error("exec needs `-- COMMAND...`, and only exec takes one")
    return options, command


def main() -> int:
    options, command = parsed(sys.argv[1:])
    exit_on_signals()
    try:
        with Stack(options.port, options.health_schedule, options.handler_url, options.action == "up") as stack:
            if command:
                return run(command, stack.env)
            if not options.empty:
                stack.fill()
            say(f"`. {shown(ENV)}` gives another shell its environment; Ctrl-C ends it")
            while True:
                signal.pause()
    except StackError as error:
        print(f"stack: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
