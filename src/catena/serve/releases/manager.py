"""Releases in a gateway: start the candidate's replicas, give it its users, watch, and act. Every act is logged.

starting --ready--> under way --steps--> promoted --bake--> done
                        \\--worse--> rolled back <--worse--/
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from catena.core.config import parse
from catena.core.errors import CatenaError, NotFound, UsageError
from catena.hub.files import write_atomically
from catena.serve.gateway.call import Call
from catena.serve.gateway.config import ModelConfig
from catena.serve.gateway.pool import Pool
from catena.serve.releases.active import Active, kept_of
from catena.serve.releases.changes import Acts, Alone, ChangeLog
from catena.serve.releases.conflict import is_another, is_elsewhere, is_over, is_under_way, was_promoted
from catena.serve.releases.evidence import Cusum
from catena.serve.releases.owed import AGAIN_S, Owed
from catena.serve.releases.plan import Decision, Outcome, Release, ReleaseConfig
from catena.serve.releases.shadow import Shadow
from catena.serve.releases.tags import Move, Tags

if TYPE_CHECKING:
    from catena.serve.gateway.app import Gateway

logger = logging.getLogger(__name__)
TICK_S = 0.25
PATIENCE_S = 1.0
"""So long a user waits for a replica of the candidate; then the stable model answers."""
DEATHS = 3
"""So many ends of a candidate's replicas of themselves and it goes back."""
REMEMBERED = 20_000
ITSELF = "catena"
BAKED = ("errors", "empty", "odd", "flagged")


class Releases:
    """All releases of a gateway, at most one for a model."""

    def __init__(self, gateway: Gateway, folder: Path, bake_s: float, tags: Tags | None = None) -> None:
        self._gateway, self._file, self._bake_s, self._tags = gateway, folder / "releases.json", bake_s, tags
        self._alone = Alone(folder / "releases.lock")
        self.log = ChangeLog(folder / "changes.jsonl")
        self._acts, self._resumed = Acts(self.log, self._keep), False
        self.active: dict[str, Active] = {}
        self._arms: OrderedDict[str, tuple[str, str]] = OrderedDict()
        self._leaving: set[asyncio.Task[None]] = set()
        self._kept: dict[str, Any] = {"promoted": {}, "active": {}, "moving": {}, "owed": []}
        if self._file.exists():
            self._kept |= orjson.loads(self._file.read_bytes())
        self._owed = Owed(tags, self._kept["owed"])
        if self._owed.due() and self._alone.held():
            self._settle(self._owed.pay())

    # -- what was before -----------------------------------------------------------------------------------------------

    def current(self, name: str, model: ModelConfig) -> ModelConfig:
        """Return what a model is served from: what was promoted, as long as the deploy file says what it said then."""
        kept = self._kept["promoted"].get(name)
        if kept is None or kept["instead_of"] != model.digest():
            return model
        return parse(ModelConfig, kept["spec"], where=str(self._file))

    def resume(self) -> None:
        """Go on with what was under way when the gateway ended; what was seen until then is not counted."""
        if not self._alone.held():
            logger.warning("another gateway has this state folder: releases are its business")
            self._resumed = True
            return
        tags, moving, reason = self._tags, self._kept["moving"], "the tag had been moved when the gateway ended"
        went = {one: tags.went(Move(**kept["move"])) if tags else False for one, kept in moving.items()}
        unknown = self._kept["moving"] = {one: moving[one] for one in went if went[one] is None}  # for the next start
        for name in [one for one, so in went.items() if so]:
            self._kept["active"].pop(name, None)
            self._acts.add("promote", name, ITSELF, reason=reason, **moving[name])
        for name in [one for one in self._kept["active"] if one in self._gateway.pools and one not in unknown]:
            kept = self._kept["active"][name]
            if kept.get("old") is not None:
                self._bake_on(name, kept)
            else:
                config = parse(ReleaseConfig, kept["release"], where=str(self._file))
                self._begin(name, kept["candidate"], kept["id"], config, kept["step"])
            self._acts.add("resume", name, ITSELF, release=kept["id"], step=kept["step"])
        self._resumed = True

    # -- acts ----------------------------------------------------------------------------------------------------------

    def start(self, model: str, candidate: str, release: Mapping[str, Any], by: str) -> dict[str, Any]:
        """Begin a release. Raises `NotFound`, or `Conflict` where one is under way."""
        if model not in self._gateway.pools:
            raise NotFound(f"there is no model {model!r}")
        if not self._alone.held():
            raise is_elsewhere()
        if model in self.active:
            raise is_under_way(model, self.log.entries())
        config = parse(ReleaseConfig, release, where="release")
        if self._tags and self._gateway.specs[model].model and candidate not in self._gateway.config.candidates:
            self._tags.require(candidate)
        active = self._begin(model, candidate, secrets.token_hex(6), config, 0)
        settings = config.model_dump(mode="json")
        self._acts.add("start", model, by, release=active.release.id, candidate=candidate, config=settings)
        return self.status(model)

    def promote(self, model: str, by: str, reason: str, evidence: Mapping[str, Any] | None = None) -> None:
        """Give everybody the candidate; the old replicas stay warm for a while."""
        active = self._one(model)
        if active.phase == "baking":
            raise was_promoted(model, self.log.entries())
        if active.phase != "under way" or (active.release.config.mode == "shadow" and by == ITSELF):
            raise UsageError(f"the release of {model!r} is {active.phase}")
        gateway = self._gateway
        active.move = self._moved(active, by)
        active.phase, active.promoted = "baking", time.time()
        active.release.promoted()
        active.old, active.old_spec = gateway.pools[model], gateway.specs[model]
        active.cusums = {name: Cusum(active.release.evidence[name].rate("stable")) for name in BAKED}
        gateway.pools[model], gateway.specs[model] = active.pool, active.spec
        active.pool.name, active.pool.line.seconds = model, gateway.config.routing.queue_s
        self._drop_shadow(active)
        if active.move is None:  # else the deploy file's own `name@tag` stands for the candidate from now on
            spec = active.spec.model_dump(mode="json")
            instead_of = gateway.config.models[model].digest()
            self._kept["promoted"][model] = {"instead_of": instead_of, "spec": spec, "release": active.release.id}
        self._kept["moving"].pop(model, None)
        told = {"release": active.release.id, "reason": reason, "evidence": evidence}
        self._acts.add("promote", model, by, **told, tag=active.move and asdict(active.move))

    def _moved(self, active: Active, by: str) -> Move | None:
        """Move the tag that the deploy file names, if it names one; what is about to be done is written down first."""
        named = self._gateway.config.models[active.model].model
        move = self._tags.move(named, active.spec.model) if self._tags and named and active.spec.model else None
        if move is not None and self._tags is not None:
            self._kept["moving"][active.model] = {"release": active.release.id, "move": asdict(move)}
            self._keep()
            try:
                self._tags.go(move, by)
            except CatenaError:
                del self._kept["moving"][active.model]
                self._keep()
                raise
        return move

    def rollback(self, model: str, by: str, reason: str, evidence: Mapping[str, Any] | None = None) -> None:
        """Give nobody the candidate any more."""
        active = self._one(model)
        if active.phase == "baking" and active.old is not None and active.old_spec is not None:
            self._gateway.pools[model], self._gateway.specs[model] = active.old, active.old_spec
            self._kept["promoted"].pop(model, None)
        back = self._owed.back(active.move, by)
        del self.active[model]
        self._drop_shadow(active)
        self._leave(active.pool)
        users = len(active.release.users)
        told = {"release": active.release.id, "reason": reason, "users": users, "evidence": evidence}
        self._acts.add("rollback", model, by, **told, **({} if back is None else {"tag_put_back": back}))

    def require(self, model: str, release: str) -> None:
        """Raise `NotFound` where no release is under way, `Conflict` where it is another than is meant."""
        if release != (found := self._one(model).release.id):
            raise is_another(model, release, found, self.log.entries())

    def like(self, request: str, good: bool) -> None:
        """Take what a user said of an answer. Raises `NotFound` where the request is not of a release."""
        model, arm = self._arms.get(request, ("", ""))
        if model not in self.active:
            raise NotFound(f"the request {request!r} is of no release that is under way")
        self.active[model].release.like(arm, good)

    def status(self, model: str) -> dict[str, Any]:
        """Return how a release stands."""
        active = self._one(model)
        release = active.release
        return {
            "model": model,
            "release": release.id,
            "candidate": active.candidate,
            "mode": release.config.mode,
            "phase": active.phase,
            "percent": 100.0 if active.phase == "baking" else release.percent,
            "step": release.step,
            "steps": list(release.config.steps),
            "limit": release.config.watch.limit,
            "answers": dict(release.answers),
            "users": len(release.users),
            "replicas": len(active.pool.ready()),
            "signals": release.table(),
            "shadow": active.shadow.comparison.table() if active.shadow else None,
        }

    # -- requests ------------------------------------------------------------------------------------------------------

    def route(self, call: Call) -> Pool | None:
        """Return the candidate's replicas where a user gets the candidate."""
        active = self.active.get(call.ask.model)
        if active is None or active.phase == "starting":
            return None
        call.keep = True
        if active.phase == "baking" or active.release.arm(_user(call)) == "stable" or not active.pool.ready():
            return None
        call.arm = "candidate"
        if active.pool.broken():
            call.fell_back = True
            return None
        return active.pool

    def ended(self, call: Call) -> None:
        """Watch how a request ended."""
        active = self.active.get(call.ask.model)
        if active is None or active.phase == "starting":
            return
        outcome = self._gateway.outcomes.of(call, _user(call), active.release.config.watch.words)
        if outcome is None:
            return
        self._arms[call.id] = (call.ask.model, call.arm)
        while len(self._arms) > REMEMBERED:
            self._arms.popitem(last=False)
        if active.phase == "baking":
            self._bake(active, outcome)
            return
        self._observe(active, outcome)
        if active.shadow is not None and outcome.text is not None:
            active.shadow.copy(call.id, call.ask, outcome.user, outcome.text)

    def _observe(self, active: Active, outcome: Outcome) -> None:
        if self.active.get(active.model) is not active or active.phase != "under way":
            return
        decision = active.release.observe(outcome, time.monotonic())
        if decision is not None:
            self._try(active, lambda: self._act(active, decision))

    def _try(self, active: Active, act: Callable[[], None]) -> None:
        """Do what follows for a release. Where the disk or the index is away no request fails of it, and no watch
        ends: it is tried again a little later."""
        if time.monotonic() < active.again:
            return
        try:
            act()
        except (CatenaError, OSError) as error:
            active.again = time.monotonic() + AGAIN_S
            logger.error("the release of %s waits: %s", active.model, error)

    def _act(self, active: Active, decision: Decision) -> None:
        logger.warning("release of %s: %s (%s)", active.model, decision.verdict, decision.reason)
        if decision.verdict == "rollback":
            self.rollback(active.model, ITSELF, decision.reason, decision.evidence)
        elif decision.verdict == "promote":
            self.promote(active.model, ITSELF, decision.reason, decision.evidence)
        else:
            active.release.advance(time.monotonic())
            told = {"release": active.release.id, "percent": active.release.percent, "reason": decision.reason}
            self._acts.add("step", active.model, ITSELF, **told, evidence=decision.evidence)

    def _bake(self, active: Active, outcome: Outcome) -> None:
        """Watch what was promoted: there is nothing beside it any more, so what clients ask wrongly is not held against
        it, and a user counts as before."""
        if outcome.refused:
            return
        events = active.release.counted(replace(outcome, arm="candidate"), time.monotonic())
        for name, cusum in active.cusums.items():
            if name in events and cusum.add(events[name]) and active.release.spread(name):
                reason = f"{name}: much more than {cusum.usual:.1%} before it was promoted"
                table = active.release.table()
                self._try(active, partial(self.rollback, active.model, ITSELF, reason, table))
                return

    # -- beside --------------------------------------------------------------------------------------------------------

    async def watch(self) -> None:
        """Look at candidates again and again: ready, ended too often, baked."""
        while True:
            await asyncio.sleep(TICK_S)
            for active in list(self.active.values()):
                self._try(active, partial(self._look, active))
            if self._owed.due():
                self._settle(await asyncio.to_thread(self._owed.pay))
            if self._acts.due():
                self._acts.write()

    def _settle(self, settled: list[tuple[Move, str, bool]]) -> None:
        for move, by, back in settled:
            self._acts.add("tag", move.name, by, tag=move.tag, tag_put_back=back)

    def _shadow(self, active: Active) -> Shadow:
        flagged = self._gateway.outcomes.flags(active.release.config.watch.words)
        return Shadow(active.pool, self._gateway.session, lambda one: self._observe(active, one), flagged)

    def _look(self, active: Active) -> None:
        if active.phase == "starting" and active.pool.ready():
            active.phase = "under way"
            active.release.entered = time.monotonic()
            if active.release.config.mode == "shadow":
                active.shadow = self._shadow(active)
        if active.pool.crashes >= DEATHS and active.pool.config.owned:
            problems = {slot.problem for slot in active.pool.slots.values()} - {""}
            reason = f"its replicas ended {active.pool.crashes} times: {'; '.join(sorted(problems))}"
            self.rollback(active.model, ITSELF, reason)
        elif active.phase != "starting" and active.pool.broken():
            why = "errors: its replicas failed so often that none of them is asked"
            self.rollback(active.model, ITSELF, why, active.release.table())
        elif active.phase == "baking" and time.time() - active.promoted > self._bake_s:
            del self.active[active.model]
            if active.old is not None:
                self._leave(active.old)
            self._acts.add("done", active.model, ITSELF, release=active.release.id)

    async def close(self) -> None:
        """Stop candidates' replicas; the release goes on with the next start."""
        self._acts.write()
        for active in self.active.values():
            self._drop_shadow(active)
            for pool in filter(None, (active.pool, active.old)):
                self._leave(pool)
        await asyncio.gather(*self._leaving, return_exceptions=True)
        self._alone.let_go()

    def _bake_on(self, model: str, kept: Mapping[str, Any]) -> None:
        """Go on watching what was promoted before a restart, with the old replicas warm again."""
        gateway = self._gateway
        spec = parse(ModelConfig, kept["old"], where=str(self._file))
        old = gateway.new_pool(model, spec)
        old.name = f"{model}-before"
        release = Release(kept["id"], parse(ReleaseConfig, kept["release"]), time.monotonic(), kept["step"])
        active = Active(model, kept["candidate"], gateway.specs[model], release, gateway.pools[model], "baking")
        active.old, active.old_spec, active.promoted = old, spec, kept["promoted"]
        active.cusums = {name: Cusum(rate) for name, rate in kept["usual"].items()}
        active.move = Move(**kept["move"]) if kept["move"] else None
        self.active[model] = active
        gateway.start_pool(old, spec)

    def _begin(self, model: str, candidate: str, id: str, config: ReleaseConfig, step: int) -> Active:
        gateway = self._gateway
        stable = gateway.specs[model]
        spec = gateway.config.candidates.get(candidate)
        if spec is None:
            if not stable.model:
                raise NotFound(
                    f"there is no candidate {candidate!r}", hint="Write it into `candidates` of the deploy file."
                )
            spec = stable.model_copy(update={"model": candidate})
        pool = gateway.new_pool(model, spec)
        pool.name, pool.line.seconds = f"{model}+{id}", PATIENCE_S
        active = Active(model, candidate, spec, Release(id, config, time.monotonic(), step), pool)
        self.active[model] = active
        gateway.start_pool(pool, spec)
        return active

    def _drop_shadow(self, active: Active) -> None:
        if active.shadow is not None:
            self._later(active.shadow.close())
            active.shadow = None

    def _leave(self, pool: Pool) -> None:
        self._later(pool.close())

    def _later(self, coroutine: Any) -> None:
        task = asyncio.create_task(coroutine)
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    def _one(self, model: str) -> Active:
        if model not in self.active:
            raise is_over(model, self.log.entries())
        return self.active[model]

    def _keep(self) -> None:
        """Write down what a restart needs."""
        if self._resumed:  # until then what was under way is only there
            self._kept["active"] = {name: kept_of(one) for name, one in self.active.items()}
        write_atomically(self._file, orjson.dumps(self._kept, option=orjson.OPT_INDENT_2))


def _user(call: Call) -> str:
    return call.ask.user or call.who.subject or call.id
