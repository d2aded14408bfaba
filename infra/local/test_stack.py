#!/usr/bin/env python3
"""Whose target/local-cloud/env.sh is, when several stacks of one checkout run."""

import io
import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from unittest import mock

import stack as local


class EnvironmentOfOtherShells(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.base = Path(folder.name)
        for name, value in {"BASE": self.base, "ENV": self.base / "env.sh"}.items():
            patch = mock.patch.object(local, name, value)
            patch.start()
            self.addCleanup(patch.stop)
        self.env = self.base / "env.sh"

    def stack(self, name: str, process: int | None = None, **options) -> local.Stack:
        made = local.Stack(**options)
        made.dir = self.base / f"run-{process or os.getpid()}-{name}"
        made.dir.mkdir()
        made.env = {"NAME": f"it's {name}"}
        with mock.patch.object(local, "say"):
            made._write_env()
        return made

    def named(self) -> str:
        script = f". {self.env} && printf %s \"$NAME\""
        return subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout

    def test_a_stack_of_tests_leaves_it_alone(self):
        tests = self.stack("tests")
        self.assertFalse(self.env.exists())
        self.assertEqual(tests.env_file.stat().st_mode & 0o777, 0o600)
        self.stack("person", for_other_shells=True)
        self.stack("tests-again")
        self.assertEqual(self.named(), "it's person")

    def test_the_first_that_runs_keeps_it(self):
        first = self.stack("first", for_other_shells=True)
        second = self.stack("second", for_other_shells=True)
        self.assertEqual(self.named(), "it's first")
        second.close()
        self.assertEqual(self.named(), "it's first")
        first.close()
        self.assertFalse(self.env.is_symlink())

    def test_one_that_was_killed_does_not(self):
        ended = subprocess.Popen([sys.executable, "-c", ""])
        ended.wait()
        self.stack("killed", ended.pid, for_other_shells=True)
        self.stack("next", for_other_shells=True)
        self.assertEqual(self.named(), "it's next")


class FilledForAPerson(unittest.TestCase):
    def test_the_sample_policies_are_put_in_force_and_the_stack_is_armed(self):
        asked = []
        with mock.patch.object(local, "say"), mock.patch.object(local.Stack, "ggen", lambda _, *asks: asked.append(asks)):
            local.Stack().fill()
        *policies, switches = asked
        found = {file.relative_to(local.ROOT / "policies") for file in (local.ROOT / "policies").glob("*/*.yaml")}
        self.assertEqual({file.relative_to(local.ROOT / "policies") for *_, file in policies}, found)
        self.assertTrue(all(asks[:2] == ("policy", "deploy") for asks in policies))
        self.assertEqual(switches[:3], ("switches", "set", "armed=true"))


class AddressesOfHandlers(unittest.TestCase):
    def test_what_the_governor_would_not_call_is_refused_at_once(self):
        for url in ["8080", "http://localhost:8080", "http://10.0.0.1", "ftp://127.0.0.1", "http://127.0.0.1.example",
                    "https://", "https:///path"]:
            with self.subTest(url=url), mock.patch("sys.stderr", io.StringIO()) as told:
                self.assertRaises(SystemExit, local.parsed, ["up", "--handler-url", url])
                self.assertIn("no other handler would be called", told.getvalue())

    def test_others_are_taken(self):
        for url in ["http://127.0.0.1:8080", "http://127.1.2.3/below", "https://handlers.example.com"]:
            with self.subTest(url=url):
                options, command = local.parsed(["exec", "--handler-url", url, "--", "true"])
                self.assertEqual((options.handler_url, command), (url, ["true"]))


if __name__ == "__main__":
    unittest.main()
