"""Hashes in the place of tokens and keys: their form, and where the configuration takes them."""

from __future__ import annotations

from hashlib import sha256

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from routemaster.config import Config, load
from routemaster.errors import ConfigError
from routemaster.model import public_name
from routemaster.token_hash import digest, hashed, is_client_hash, is_hash
from routemaster.validation import is_token

TOKEN = "shop--canary"
DIGITS = sha256(TOKEN.encode()).hexdigest()
HASH = f"shop--sha256:{DIGITS}"
KEY = "the root key"
KEY_HASH = f"sha256:{sha256(KEY.encode()).hexdigest()}"
#: what is no hash
OTHERS = (
    "", "shop", TOKEN, "sha256:", f"shop-sha256:{DIGITS}", f"SHOP--sha256:{DIGITS}", f"shop--sha256:{DIGITS[1:]}",
    f"shop--sha256:{DIGITS}0", f"shop--sha256:{DIGITS.upper()}", f"shop--SHA256:{DIGITS}",
    f"shop--sha512:{DIGITS}", f"shop--sha256:{DIGITS}\n", f"shop--x--sha256:{DIGITS}",
    f"{'s' * 63}--sha256:{DIGITS}", f"s---sha256:{DIGITS}", f"a b--sha256:{DIGITS}",
)  # fmt: skip
TOKENS = st.from_regex("[a-z0-9:_-]{1,64}", fullmatch=True)


class FormTests(SynchronousTestCase):
    """What stands in the place of a token or a key."""

    def test_forms(self) -> None:
        """A token becomes its public name and its SHA-256; without secret part, and as a hash, it stays."""
        self.assertEqual(hashed(TOKEN), HASH)
        self.assertEqual(hashed(HASH), HASH)
        for token in ("demo", "a-b", "sha256:x"):
            self.assertEqual(hashed(token), token)
        self.assertEqual((is_hash(HASH), is_hash(KEY_HASH)), (True, True))
        self.assertEqual((is_client_hash(HASH), is_client_hash(KEY_HASH)), (True, False))
        for other in OTHERS:
            self.assertFalse(is_hash(other), other)

    @given(TOKENS)
    def test_tokens(self, token: str) -> None:
        """A hash has the token's public name and digest, and is itself no token."""
        self.assertEqual(public_name(hashed(token)), public_name(token))
        self.assertEqual(digest(hashed(token)), digest(token))
        self.assertEqual(is_hash(hashed(token)), "--" in token)
        self.assertNotEqual(is_token(hashed(token)), "--" in token)

    def test_digest(self) -> None:
        """A key and its hash have the same digest."""
        self.assertEqual(digest(KEY), digest(KEY_HASH))
        self.assertNotEqual(digest(KEY), digest(f"{KEY} "))


class ConfigurationTests(SynchronousTestCase):
    """Options that take hashes."""

    def load(self, **options: str) -> Config:
        return load(options, {}, None)

    def refused(self, *words: str, **options: str) -> None:
        error = self.assertRaises(ConfigError, self.load, **options)
        for word in words:
            self.assertIn(word, str(error))
        self.assertNotIn("canary", str(error))

    def test_hashes(self) -> None:
        """Clients, the root key and monitor keys may be given as hashes; they are shown masked."""
        new = hashed("new--1")
        monitors = f"{hashed('mon--1')},{KEY_HASH[:-1]}0"
        config = self.load(clients=f"demo, {HASH}, {new}={HASH}", root_key=KEY_HASH, monitor_keys=monitors)
        self.assertEqual(config.clients, {"demo": "demo", HASH: HASH, new: HASH})
        self.assertEqual((config.root_key, len(config.monitor_keys)), (KEY_HASH, 2))
        self.assertNotIn(DIGITS, config.describe() + repr(config))

    def test_no_hashes(self) -> None:
        """What is meant as a hash and is none is refused, and not taken for a token."""
        for text in (KEY_HASH, "shop--sha256:12", "sha256:12", HASH[:-1], f"{HASH}0", HASH.upper()):
            self.refused("clients is invalid", clients=text)
            self.refused("clients is invalid", clients=f"new--1={text}")
        for text in (KEY_HASH[:-1], HASH, "sha256:12"):
            self.refused("root_key is invalid", root_key=text)
        self.refused("monitor_keys is invalid", monitor_keys="sha256:12")

    def test_same_secret(self) -> None:
        """A key must differ from tokens and other keys, whichever of them is a hash."""
        key = f"sha256:{DIGITS}"
        for one, other in ((TOKEN, key), (HASH, TOKEN.replace(":", "")), (HASH, key)):
            self.refused("root_key", "must differ", clients=one, root_key=other)
            self.refused("monitor_keys", "must differ", monitor_keys=one, root_key=other)
        self.refused("monitor_keys", "must differ", monitor_keys=TOKEN, clients=HASH)

    def test_hashes_only(self) -> None:
        """With hash_tokens nothing may be given but hashes, and tokens without secret part."""
        clients, monitor = f"demo,{HASH},{hashed('a--1')}={HASH}", hashed("mon--1")
        self.load(hash_tokens="YES", clients=clients, root_key=KEY_HASH, monitor_keys=monitor)
        self.load(hash_tokens="YES")
        for option, text in (("clients", f"demo,{TOKEN}"), ("clients", f"{HASH}={TOKEN}"), ("root_key", "canary"),
                             ("monitor_keys", TOKEN), ("monitor_keys", f"{HASH},canary")):  # fmt: skip
            self.refused(option, "must be given as a hash", "sha256sum", hash_tokens="YES", **{option: text})
            self.load(**{option: text})
