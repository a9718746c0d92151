"""Rolling upgrades, and the way back: processes of one version are exchanged for those of another.

A run that names this fault begins with the code of the last release. As many
exchanges as there are processes are an upgrade, as many again the way back.
Until the last is exchanged, both versions work on the same data.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

import random

from twisted.internet.defer import Deferred

from chaos.faults import Scene, fault

EARLIER = "version-change"


@fault(EARLIER)
async def version_change(scene: Scene, chance: random.Random, _: str) -> None:
    """SIGTERM to a process, and one of the other version in its place: each once, before any again."""
    members = scene.fleet.members
    fewest = min(member.exchanges for member in members)
    member = chance.choice([member for member in members if member.exchanges == fewest])
    member.exchanges += 1

    async def exchange() -> None:
        await member.stop()
        member.release = None if member.release else scene.fleet.release
        await member.start()

    await member.lock.run(lambda: Deferred.fromCoroutine(exchange()))
