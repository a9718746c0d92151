"""The commands with a bus that keeps tokens as hashes."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from routemaster.cli import round_trip
from routemaster.model import ApiToken
from routemaster.token_hash import digest, hashed
from tests.cli.test_cli import EVENT, ROOT_KEY, ApiCase


class HashedTokenTests(ApiCase):
    """Tokens that the bus cannot tell any more."""

    hash_tokens = True

    async def test_tokens(self) -> None:
        """A token is printed once, then its hash is listed; either deletes it, and replaces it."""
        made = (await self.done("tokens", "add", "bob")).out.strip()
        self.assertEqual((await self.store.tokens()).names, {hashed(made): "bob"})
        listed = (await self.done("tokens", "list")).out
        self.assertIn(hashed(made), listed)
        self.assertNotIn(made, listed)
        new = (await self.done("tokens", "add", "bob", "--replaces", hashed(made))).out.strip()
        for token in (made, hashed(new)):
            self.assertIn("token of bob deleted", (await self.done("tokens", "delete", token)).out)
        self.assertEqual((await self.store.tokens()).names, {})
        self.assertIn("no such token", (await self.run_command("tokens", "delete", made)).err)

    async def test_configured_hashes(self) -> None:
        """A hash of the configuration is not sent as a token or key: the root key comes from a file."""
        options = {
            "ROUTEMASTER_CLIENTS": hashed("bob--1"), "ROUTEMASTER_ROOT_KEY": f"sha256:{digest(ROOT_KEY).hex()}",
            "ROUTEMASTER_HASH_TOKENS": "YES",
        }  # fmt: skip
        for command in (("tokens", "list"), ("topics",)):
            self.assertIn("--root-key-file", (await self.run_command(*command, **options)).err)
        file = self.state / "root-key"
        file.write_text(ROOT_KEY)
        for command in (("tokens", "list"), ("topics",)):
            await self.done(*command, "--root-key-file", str(file), **options)

    async def test_doctor_after_a_kill(self) -> None:
        """Doctor removes what a killed doctor has left, once that is old, and nothing of one that runs."""
        name, token = f"{round_trip.NAME}-{int(time.time()):08x}", hashed(f"{round_trip.NAME}--1")
        await self.store.add_token(ApiToken(name, token))
        await self.store.publish(round_trip.TOPIC, token, [EVENT])
        await self.subscribed(token, topics=[round_trip.TOPIC])
        self.assertIn("another doctor", (await self.run_command("doctor")).out)
        self.assertEqual(await self.store.subscribers(), {token})
        await self.store.add_token(ApiToken(f"{round_trip.NAME}-{int(time.time()) - 1000:08x}", token))
        command: Any = self.begin("doctor")
        await self.waiting(token)
        self.assertNotIn(token, await self.store.subscribers())
        os.kill(command.transport.pid, signal.SIGINT)
        self.assertIn("interrupted", (await command.ended).out)
        self.assertEqual((await self.store.tokens()).names, {})
        self.assertEqual(await self.store.topics(), [])
        # a topic whose token is gone belongs to no doctor that runs
        await self.store.publish(round_trip.TOPIC, token, [EVENT])
        command = self.begin("doctor")
        await self.waiting()
        os.kill(command.transport.pid, signal.SIGINT)
        self.assertIn("interrupted", (await command.ended).out)
