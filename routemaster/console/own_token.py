"""The login token that the console makes if none is configured, so that it is never open to everybody."""

from __future__ import annotations

import os
import re
from pathlib import Path

from routemaster.errors import ConfigError

FILE = "login-token"
_TOKEN = re.compile("admin--[0-9a-f]{32}")


def ensure_login_token(state_dir: Path, digits: str) -> str:
    """The token in `state_dir`, made from 32 hexadecimal digits if there is none. Raises ConfigError."""
    path = state_dir / FILE
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.exists() and _TOKEN.fullmatch(text := path.read_text("utf-8").strip()):
            return text
        token = f"admin--{digits}"
        draft = path.with_name(f".{FILE}.{os.getpid()}")
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(f"{token}\n")
        draft.replace(path)
    except OSError as error:
        raise ConfigError(f"state_dir: cannot write a login token to {state_dir}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"state_dir: {path} is not UTF-8") from None
    return token
