"""Renders the Helm chart without Helm: `python scripts/manifests.py` writes deploy/kubernetes for kubectl.

Only a small part of Helm's language: `{{ .Values.a.b }}`, `{{ .Release.Name }}`, `| quote`, `toYaml ... | nindent N`,
`if` and `end` on lines of their own. Anything else is an error, so that the chart stays within it.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
CHART = ROOT / "deploy" / "helm" / "catena"
OUTPUT = ROOT / "deploy" / "kubernetes"
RELEASE = "catena"
IF = re.compile(r"\s*\{\{- if (\S+) \}\}")
END = re.compile(r"\s*\{\{- end \}\}")
BLOCK = re.compile(r"\s*\{\{- toYaml (\S+) \| nindent (\d+) \}\}")
VALUE = re.compile(r"\{\{ (\.\S+)( \| quote)? \}\}")


def look_up(path: str, values: dict[str, Any]) -> Any:
    """Return what `.Values.a.b` or `.Release.Name` stands for."""
    found: Any = {"Values": values, "Release": {"Name": RELEASE}}
    for part in path.removeprefix(".").split("."):
        found = found[part]
    return found


def render(template: str, values: dict[str, Any]) -> str:
    """Render one template."""
    lines: list[str] = []
    shown = [True]
    for line in template.splitlines():
        if match := IF.fullmatch(line):
            shown.append(shown[-1] and bool(look_up(match[1], values)))
        elif END.fullmatch(line):
            shown.pop()
        elif not shown[-1]:
            continue
        elif match := BLOCK.fullmatch(line):
            text = yaml.safe_dump(look_up(match[1], values), sort_keys=False).rstrip()
            lines += [" " * int(match[2]) + inner for inner in text.splitlines()]
        else:
            lines.append(VALUE.sub(lambda found: _value(found, values), line))
            if re.search(r"\{\{[ -]", lines[-1]):
                raise ValueError(f"not in the part of Helm's language that is used here: {line.strip()}")
    if len(shown) != 1:
        raise ValueError("an if without its end")
    return "\n".join(lines).strip() + "\n"


def _value(found: re.Match[str], values: dict[str, Any]) -> str:
    value = look_up(found[1], values)
    return json.dumps(str(value)) if found[2] else str(value)


def chart(values: dict[str, Any] | None = None) -> dict[str, str]:
    """Return every template rendered, by its name; one that comes to nothing is left out."""
    given = values or yaml.safe_load((CHART / "values.yaml").read_text())
    texts = {path.name: render(path.read_text(), given) for path in sorted((CHART / "templates").glob("*.yaml"))}
    return {name: text for name, text in texts.items() if text.strip()}


def main() -> None:
    """Write the manifests of the default values, and a kustomization over them."""
    OUTPUT.mkdir(exist_ok=True)
    rendered = chart()
    for name, text in rendered.items():
        (OUTPUT / name).write_text(f"# Made by scripts/manifests.py from deploy/helm/catena.\n{text}")
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": list(rendered),
    }
    (OUTPUT / "kustomization.yaml").write_text(yaml.safe_dump(kustomization, sort_keys=False))


if __name__ == "__main__":
    main()
