"""Settings of governance; `settings.py` has them as `govern.*`.

Keys, audit and moderation are off until they are switched on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from catena.core.config import Config
from catena.govern.roles import Role

Action = Literal["block", "mask", "flag"]


class JwtConfig(Config):
    """Tokens of an identity provider (OpenID Connect), beside API keys."""

    issuer: str = ""
    """The `iss` that tokens must have; empty: tokens are not taken."""
    audience: str = ""
    """The `aud` that tokens must have."""
    jwks: str = ""
    """URL or file of the provider's public keys; empty: found by the issuer's `.well-known/openid-configuration`."""
    algorithms: tuple[Literal["RS256", "RS512", "PS256", "ES256", "ES384", "EdDSA"], ...] = ("RS256", "ES256", "EdDSA")
    """Signatures that are taken; those with a shared secret, and `none`, never are."""
    role_claim: str = "roles"
    """Claim with the role or a list of them; `a.b` leads into an object."""
    roles: dict[str, Role] = Field(default_factory=dict)
    """What the provider calls a role, to ours; empty: the same words."""
    default_role: Role | None = None
    """Role of a token that names none; none: it is refused."""
    models_claim: str = ""
    """Claim with a list of model patterns; empty: all models."""
    one_use: bool = False
    """Whether a token (which then needs a `jti`) opens only once."""
    leeway_s: float = Field(default=30.0, ge=0, le=300)
    """By how much clocks may differ, in seconds."""
    refresh_s: float = Field(default=300.0, ge=1)
    """How long the provider's keys are believed before they are asked for again, in seconds."""

    @model_validator(mode="after")
    def _whole(self) -> JwtConfig:
        if self.issuer and not self.audience:
            raise ValueError("an issuer needs an audience: a token for another service must not open this one")
        return self


class AuthConfig(Config):
    """Who may ask."""

    on: bool = False
    """Whether every route but /health needs an API key or a token."""
    refresh_s: float = Field(default=2.0, gt=0)
    """How often the index is asked for changed keys, in seconds: a revoked key opens at most so long."""
    stale_after_h: float = Field(default=72.0, gt=0)
    """How long keys are believed while the index cannot be asked, in hours; then everybody is refused."""
    jwt: JwtConfig = JwtConfig()


class AuditConfig(Config):
    """What is written down."""

    on: bool = False
    """Whether every request, answer and decision is written to the audit."""
    folder: Path | None = None
    """Where segments are; none: `audit` in the workspace."""
    checkpoints: Path | None = None
    """Where signed checkpoints are; best on another disk or machine. None: `checkpoints` in the workspace."""
    keep_days: int = Field(default=180, ge=180)
    """How long segments are kept before `catena audit prune` takes them, in days."""
    when_full: Literal["stop", "degrade"] = "stop"
    """What happens while nothing can be written: requests are refused (503), or answered, counted and noted later."""
    durable: bool = True
    """Whether an answer's end waits until its record is on the disk."""
    max_bytes: int = Field(default=1 << 20, ge=1024)
    """Longest body that is kept of a request or an answer; of a longer one the beginning and the SHA-256 are."""


class ModerationConfig(Config):
    """What may be asked and answered."""

    on: bool = False
    """Whether prompts and answers are looked through."""
    words: tuple[str, ...] = ("en", "zh")
    """Word lists: `en`, `zh`, or paths of files; changed files are read again while the server runs."""
    on_words: Action = "block"
    """What happens to a listed word. Entries may say otherwise."""
    personal: bool = True
    """Whether personal data is looked for."""
    on_personal: Action = "mask"
    """What happens to personal data."""
    classifier: str = ""
    """Reference of a model made by `govern.train_filter` (recipes/moderation.yaml); empty: none."""
    on_classifier: Literal["block", "flag"] = "block"
    """What happens to what the classifier finds."""
    threshold: float | None = Field(default=None, gt=0, lt=1)
    """Probability from which it counts; none: what the model was set to when it was trained."""
    prompts: bool = True
    """Whether prompts are looked through."""
    answers: bool = True
    """Whether answers are."""
    refresh_s: float = Field(default=2.0, gt=0)
    """How often word lists are looked at for changes, in seconds."""


class FeedbackConfig(Config):
    """What users say of answers."""

    on: bool = True
    """Whether `POST /v1/feedback` is taken, while the audit is on: what is said is learnt from together with it."""
    keep_days: float = Field(default=7.0, gt=0)
    """So long after an answer it can be rated, in days."""
    most_answers: int = Field(default=5_000_000, ge=1)
    """Most rows of answers that can be rated (up to three for each); the oldest go first."""


class GovernConfig(Config):
    """Governance of a server."""

    auth: AuthConfig = AuthConfig()
    audit: AuditConfig = AuditConfig()
    moderation: ModerationConfig = ModerationConfig()
    feedback: FeedbackConfig = FeedbackConfig()
    allow_open: bool = False
    """Whether a server without `auth` may listen where other machines reach it."""


class PluginsConfig(Config):
    """Where plugins come from, and whose are trusted."""

    index: str = ""
    """File or URL of the index."""
    keys: tuple[str, ...] = ()
    """Public keys (64 hexadecimal digits) of publishers whose plugins may be installed."""
