"""ops/deploy: each file is checked by the tool that will read it, and all agree with each other and with the docs."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import click
import pytest

from crawler.cli.main import main
from crawler.job.document import load_job_file

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "ops" / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
PROMETHEUS = DEPLOY / "prometheus"
UNITS = sorted(
    path for folder in (DEPLOY / "systemd", ROOT / "examples" / "refresh") for path in folder.glob("*.[st]*[re]")
)
OVERLAYS = ["trial", "production"]
INSTALLED = "/srv/crawl/.venv/bin/shardcrawl"
IN_A_METRIC = {"le"}

yaml = pytest.importorskip("yaml", reason="make deploy-tools")


def tool(name: str) -> str:
    """The path of a program; without it the test is skipped."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"there is no {name}")
    return path


def output(*words: str | Path) -> tuple[int, str]:
    """The exit code and all output of a command."""
    ended = subprocess.run([str(word) for word in words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return ended.returncode, ended.stdout


def documents(path: Path) -> list[Any]:
    return list(yaml.safe_load_all(path.read_text()))


def composed() -> dict[str, Any]:
    """The compose file, with the defaults of its variables, and a folder for those that have none."""
    text = re.sub(r"\$\{\w+:-(.*?)\}", r"\1", (DEPLOY / "compose.yaml").read_text())
    loaded: dict[str, Any] = yaml.safe_load(re.sub(r"\$\{\w+:\?.*?\}", "/job", text))
    return loaded


def documented() -> dict[str, set[str]]:
    """{metric: its labels} of docs/metrics.md; a histogram has its three series."""
    found: dict[str, set[str]] = {}
    for name, kind, labels in re.findall(
        r"^\| `(shardcrawl_\w+)` \| (\w+) \| (.*?) \|", (ROOT / "docs" / "metrics.md").read_text(), re.MULTILINE
    ):
        for tail in ("_bucket", "_sum", "_count") if kind == "histogram" else ("",):
            found[name + tail] = set(re.findall(r"`(\w+)`", labels)) | (IN_A_METRIC if tail == "_bucket" else set())
    return found


def panels() -> list[str]:
    """The expressions of the dashboard, with its variables filled in."""
    dashboard = json.loads((DEPLOY / "grafana" / "dashboard.json").read_text())
    found = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    found += [one["expr"] for one in dashboard["annotations"]["list"]]
    return [expr.replace("$run", ".*") for expr in found]


def expressions() -> list[str]:
    """All expressions in PromQL: of alerts, of the dashboard, and of KEDA."""
    (rules,) = documents(PROMETHEUS / "rules.yaml")
    (scaled,) = documents(KUBERNETES / "keda" / "scaledobject.yaml")
    queries = [trigger["metadata"]["query"] for trigger in scaled["spec"]["triggers"]]
    return [rule["expr"] for group in rules["groups"] for rule in group["rules"]] + panels() + queries


def commands() -> Iterator[list[str]]:
    """Each `shardcrawl` command line of the files, without the program's name."""
    for service in composed()["services"].values():
        if service["image"].startswith("shardcrawl"):
            yield shlex.split(service["command"])
    for path in UNITS:
        for line in re.findall(rf"^ExecStart={INSTALLED} (.+)$", path.read_text(), re.MULTILINE):
            yield shlex.split(line)
    for path in KUBERNETES.rglob("*.yaml"):
        for document in documents(path):
            yield from (
                one["args"] for one in containers(document) if one["image"].startswith("shardcrawl") and "args" in one
            )
    for line in (ROOT / "Procfile").read_text().splitlines():
        yield shlex.split(re.sub(r"\$\{\w+:-(.+)\}", r"\1", line.partition("shardcrawl ")[2]))


def pod_of(document: Any) -> dict[str, Any]:
    """The spec of the pods that a manifest makes; empty for others."""
    spec = document.get("spec", {}) if isinstance(document, dict) else {}
    spec = spec.get("jobTemplate", {}).get("spec", spec)
    pod: dict[str, Any] = spec["template"]["spec"] if "template" in spec else {}
    return pod


def containers(document: Any) -> list[dict[str, Any]]:
    pod = pod_of(document)
    return [*pod.get("initContainers", []), *pod.get("containers", [])]


def grace_of(words: list[str]) -> float:
    """The seconds that a drain may take with these words; a coordinator and `serve` do not drain."""
    return float(words[words.index("--grace") + 1]) if "--grace" in words else 25 * (words[0] in ("run", "work"))


def seconds(text: str) -> float:
    return float(text.removesuffix("s"))


def test_alerts_fire_and_are_well_formed() -> None:
    promtool = tool("promtool")
    assert output(promtool, "check", "config", PROMETHEUS / "prometheus.yaml")[0] == 0
    code, text = output(promtool, "test", "rules", PROMETHEUS / "rules_test.yaml")
    assert code == 0, text


def test_each_alert_is_seen_to_fire() -> None:
    (rules,), (cases,) = documents(PROMETHEUS / "rules.yaml"), documents(PROMETHEUS / "rules_test.yaml")
    fires = {
        one["alertname"] for case in cases["tests"] for one in case.get("alert_rule_test", []) if one.get("exp_alerts")
    }
    assert fires == {rule["alert"] for group in rules["groups"] for rule in group["rules"]}


def test_expressions_are_promql() -> None:
    promql = pytest.importorskip("promql_parser", reason="make deploy-tools")
    for expression in expressions():
        promql.parse(expression)


def test_metrics_and_their_labels_are_those_of_the_docs() -> None:
    known = documented()
    used = set()
    for expression in expressions():
        for name, matchers in re.findall(r"\b(shardcrawl_\w+)(?:\{(.*?)\})?", expression):
            assert name in known, name
            assert set(re.findall(r"(\w+)=", matchers)) <= known[name], expression
            used.add(name)
        assert set(re.findall(r"\w+", " ".join(re.findall(r"(?:by|on) \((.*?)\)", expression)))) <= set().union(
            *known.values()
        )
    # Those that no panel shows are left out for a reason, and named here.
    unused = {
        "shardcrawl_source_read",
        "shardcrawl_requests_total",
        "shardcrawl_stage_seconds_sum",
        "shardcrawl_stage_seconds_count",
    }
    assert known.keys() - used == unused


def test_compose_is_compose() -> None:
    compose_spec = pytest.importorskip("compose_spec", reason="make deploy-tools")
    compose = composed()
    compose_spec.PyCompose.from_json(json.dumps(compose)).to_spec()
    for name, service in compose["services"].items():
        assert set(service["networks"]) <= set(compose["networks"]), name
        for volume in service.get("volumes", []):
            place = volume.partition(":")[0]
            assert place in compose["volumes"] or place == "/job" or (DEPLOY / place).exists(), place


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_manifests_are_those_of_kubernetes(overlay: str) -> None:
    kubernetes = pytest.importorskip("kubernetes_validate", reason="make deploy-tools")
    code, built = output(tool("kubectl"), "kustomize", KUBERNETES / overlay)
    assert code == 0, built
    resources = [one for one in yaml.safe_load_all(built) if one["kind"] != "ScaledObject"]
    for resource in resources:
        kubernetes.validate(resource, kubernetes.latest_version(), strict=True)
    labels = [
        spec.get("jobTemplate", {}).get("spec", spec)["template"]["metadata"]["labels"]
        for spec in (one.get("spec", {}) for one in resources)
        if "template" in spec or "jobTemplate" in spec
    ]
    for resource in resources:  # a selector that selects no pod does nothing, and nobody says so
        if resource["kind"] in ("PodDisruptionBudget", "Service"):
            selector = resource["spec"]["selector"]
            wanted = selector.get("matchLabels", selector).items()
            assert any(wanted <= given.items() for given in labels), resource["metadata"]["name"]
    load_job_file(KUBERNETES / overlay / "job.toml")


def test_manifests_of_the_base_and_the_example_are_valid_without_an_overlay() -> None:
    kubernetes = pytest.importorskip("kubernetes_validate", reason="make deploy-tools")
    (base,) = documents(KUBERNETES / "base" / "kustomization.yaml")
    for path in [
        *(KUBERNETES / "base" / name for name in base["resources"]),
        ROOT / "examples" / "refresh" / "cronjob.yaml",
    ]:
        for document in documents(path):
            kubernetes.validate(document, kubernetes.latest_version(), strict=True)


def test_no_container_is_root_or_may_become_it() -> None:
    ours = [document for path in KUBERNETES.rglob("*.yaml") for document in documents(path) if containers(document)]
    assert len(ours) == 5
    for document in ours:
        assert pod_of(document)["securityContext"]["runAsNonRoot"]
        for container in containers(document):
            assert not container["securityContext"]["allowPrivilegeEscalation"]
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert "memory" in container["resources"]["limits"]


def test_who_stops_a_process_waits_longer_than_its_drain() -> None:
    waits = []
    for path in UNITS:
        text = path.read_text()
        for line in re.findall(rf"^ExecStart={INSTALLED} (.+)$", text, re.MULTILINE):
            waits.append((shlex.split(line), seconds(re.findall(r"^TimeoutStopSec=(.+)$", text, re.MULTILINE)[0])))
    for path in [*KUBERNETES.rglob("*.yaml"), ROOT / "examples" / "refresh" / "cronjob.yaml"]:
        for document in documents(path):
            for container in containers(document):
                if container["image"].startswith("shardcrawl") and "args" in container:
                    waits.append((container["args"], pod_of(document)["terminationGracePeriodSeconds"]))
    worker = composed()["services"]["worker"]
    waits.append((shlex.split(worker["command"]), seconds(worker["stop_grace_period"])))
    assert sum(grace_of(words) > 0 for words, _ in waits) == 5
    for words, wait in waits:
        assert grace_of(words) + 4 <= wait, words


def test_the_files_call_commands_and_options_that_exist() -> None:
    called = list(commands())
    assert {words[0] for words in called} == {"coordinate", "work", "serve", "run"}
    for words in called:
        command = main.get_command(click.Context(main), words[0])
        assert command is not None
        options = {name for parameter in command.params for name in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= options, words


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_units_are_those_of_systemd(unit: Path, tmp_path: Path) -> None:
    """Any output is a complaint: the exit code is 0 with most of them."""
    analyze = tool("systemd-analyze")
    for path in unit.parent.glob(f"{unit.stem}.*"):
        (tmp_path / path.name).write_text(path.read_text().replace(INSTALLED, "/bin/true"))
    assert output(analyze, "verify", tmp_path / unit.name) == (0, "")


def test_the_image_has_what_it_copies_is_not_root_and_knows_when_it_is_ill() -> None:
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", "")
    kept = re.findall(r"^!(\S+)$", (DEPLOY / "Dockerfile.dockerignore").read_text(), re.MULTILINE)
    copied = [word for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE) for word in line.split()[:-1]]
    assert sorted(copied) == sorted(kept)
    assert all((ROOT / name).exists() for name in copied)
    assert re.findall(r"^USER (.+)$", text, re.MULTILINE)[-1] == "10001"
    _, flag, code = json.loads(re.findall(r"^HEALTHCHECK .*? CMD (\[.+\])$", text, re.MULTILINE)[0])

    class Health(BaseHTTPRequestHandler):
        status = 200

        def do_GET(self) -> None:
            self.send_response(self.status if self.path == "/healthz" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Health) as server:
        threading.Thread(target=server.serve_forever).start()

        def probe() -> int:
            environ = {"HEALTH_PORT": str(server.server_port)}
            return subprocess.run([sys.executable, flag, code], env=environ, stderr=subprocess.DEVNULL).returncode

        assert probe() == 0
        Health.status = 503
        assert probe() == 1
        server.shutdown()
    assert probe() == 1
