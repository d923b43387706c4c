"""The compliance report as a page for people; everything that stands in it is escaped."""

from __future__ import annotations

from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from catena.govern.changes import change_log
from catena.govern.compliance import ComplianceReport, Line
from catena.hub.store import Store


def page(report: ComplianceReport, store: Store) -> str:
    """Return the HTML of a report, with the change log of models behind it."""
    environment = Environment(
        loader=PackageLoader("catena.govern", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    template = environment.get_template("compliance.jinja")
    return template.render(report=report, counts=report.counts(), evidence=_evidence, changes=change_log(store))


def _evidence(line: Line) -> str:
    return (
        yaml.safe_dump(_plain(dict(line.evidence)), allow_unicode=True, sort_keys=False).strip()
        if line.evidence
        else ""
    )


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)
