"""The manifests for Kubernetes: what kustomize makes of them is valid, and says what the code says.

`kubectl` on the PATH, from 1.27 on, builds the overlays, with the examples of secrets in place; without it these
tests are skipped. No cluster is asked for anything.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml  # type: ignore[import-untyped]
from twisted.internet import reactor
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from routemaster.config import OPTIONS, load
from routemaster.daemon.listeners import DRAIN
from routemaster.daemon.supervisor import MARGIN
from routemaster.metrics.catalogue import METRICS
from routemaster.redis.address import parse
from routemaster.tap import Options
from routemaster.testing.daemon import LOOPBACK, RUN, Daemon
from tests.daemon.test_deploy import DEPLOY, OPERATIONS, ROOT
from tests.daemon.test_sandbox import ISOLATED, READ_ONLY, can_isolate
from tests.system.test_system import AUTHORITY, SystemCase, free_port, until
from tests.web.test_api import DOCUMENT

HERE = DEPLOY / "kubernetes"
OVERLAYS = sorted(path.name for path in (HERE / "overlays").iterdir())
VERSIONS = ("1.29", "1.32", "1.35")  #: of Kubernetes; the base uses nothing that is newer than the first
OF_OPERATORS = {"ServiceMonitor": "monitoring.coreos.com/v1", "Certificate": "cert-manager.io/v1"}
#: another user, who can get no rights; inside a namespace in which the file system is mounted read-only
UNPRIVILEGED = ["unshare", "--user", "--map-user=10001", "--map-group=10001", "setpriv", "--no-new-privs",
                "--bounding-set=-all", "--inh-caps=-all"]  # fmt: skip
#: what runs there: it makes sure of that, and then is twistd
CHECKED = f"""
import errno, os, sys
assert (os.getuid(), os.getgid()) == (10001, 10001), os.getuid()
try:
    open("/written", "w")
except OSError as error:
    assert error.errno == errno.EROFS, error
else:
    sys.exit("the file system can be written")
{RUN}
"""
#: a program that runs the above with its arguments by a command
RUN_BY = """
import os, sys
command = [*{command!r}, sys.executable, "-c", {program!r}, *sys.argv[1:]]
os.execvp(command[0], command)
"""
HASH = re.compile(r"-[a-z0-9]{10}$")  #: of a generated name
STANDARD = re.compile(r"OTEL_[A-Z_]+")


@cache
def can_run() -> bool:
    """Whether user namespaces are allowed here: if not, as in some containers, the rights stay as they are."""
    return can_isolate() and shutil.which("setpriv") is not None


@cache
def kubectl() -> str:
    """The program; raises SkipTest without it, or if it is too old."""
    program = shutil.which("kubectl")
    if program is None:
        raise SkipTest("kubectl is not here")
    version = subprocess.run([program, "version", "--client"], capture_output=True, text=True, check=False).stdout
    if "Kustomize Version: v5" not in version:
        raise SkipTest("kubectl is too old: kustomize in it is not of version 5")
    return program


@cache
def built(overlay: str) -> tuple[dict[str, Any], ...]:
    """The resources that an overlay makes."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "kubernetes"
        shutil.copytree(HERE, copy)
        for example in copy.rglob("*.example"):
            example.rename(example.with_suffix(""))
        command = [kubectl(), "kustomize", str(copy / "overlays" / overlay)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr, done.stderr
    return tuple(yaml.safe_load_all(done.stdout))


def each(kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The resources of a kind in all overlays, each with the overlay's name."""
    for overlay in OVERLAYS:
        yield from ((overlay, found) for found in built(overlay) if found["kind"] == kind)


def one(overlay: str, kind: str, name: str) -> dict[str, Any]:
    """The one resource of this kind and name."""
    (found,) = [
        each for each in built(overlay) if each["kind"] == kind and HASH.sub("", each["metadata"]["name"]) == name
    ]
    return found


def pod(deployment: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The specification of a deployment's pods, and of their one container."""
    spec = deployment["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    return spec, container


def variables(overlay: str, container: dict[str, Any]) -> dict[str, str]:
    """The environment of a container, secrets as in the examples."""
    found: dict[str, str] = {}
    for source in container["envFrom"]:
        if "configMapRef" in source:
            found |= one(overlay, "ConfigMap", HASH.sub("", source["configMapRef"]["name"]))["data"]
        else:
            name = HASH.sub("", source["secretRef"]["name"]).removeprefix("routemaster-")
            lines = (HERE / "overlays" / overlay / f"{name}.env.example").read_text("utf-8").splitlines()
            found |= dict(line.split("=", 1) for line in lines)
    return found | {each["name"]: each["value"] for each in container.get("env", ())}


class BuildTests(SynchronousTestCase):
    """What kustomize makes."""

    def test_valid(self) -> None:
        """Each resource is valid by the schemas of an old and of new versions, with no unknown field."""
        for overlay in OVERLAYS:
            for found in built(overlay):
                if OF_OPERATORS.get(found["kind"]) == found["apiVersion"]:
                    continue
                for version in VERSIONS:
                    kubernetes_validate.validate(found, version, strict=True)

    def test_invalid(self) -> None:
        """The schemas refuse a field that does not exist, and a value of another type."""
        for change in ({"replicaz": 1}, {"minReadySeconds": "5"}):
            deployment = one(OVERLAYS[0], "Deployment", "routemaster-web")
            wrong = deployment | {"spec": deployment["spec"] | change}
            with self.assertRaises(kubernetes_validate.ValidationError):
                kubernetes_validate.validate(wrong, VERSIONS[0], strict=True)

    def test_references(self) -> None:
        """Every name by which one resource refers to another is there, or is one that the page tells to make."""
        page = (ROOT / "docs" / "kubernetes.rst").read_text("utf-8")
        for overlay in OVERLAYS:
            names = {(found["kind"], found["metadata"]["name"]) for found in built(overlay)}
            for found in built(overlay):
                for kind, name in references(found):
                    made = (kind, name) in names or f"``{name}``" in page
                    self.assertTrue(made, f"{overlay}: {found['kind']} refers to {kind} {name}")

    def test_selectors(self) -> None:
        """Each selector selects the pods of one deployment, that of the egress the pods of both."""
        for overlay in OVERLAYS:
            labels = {found["metadata"]["name"]: found["spec"]["template"]["metadata"]["labels"]
                      for found in built(overlay) if found["kind"] == "Deployment"}  # fmt: skip
            for found in built(overlay):
                wanted = selector(found)
                if wanted is not None:
                    hits = {name for name, has in labels.items() if wanted.items() <= has.items()}
                    name = found["metadata"]["name"]
                    both = name == "routemaster-egress"
                    expected = set(labels) if both else {name if name in labels else "routemaster-web"}
                    self.assertEqual(hits, expected, f"{overlay}: {found['kind']} {name}")

    def test_each_kind(self) -> None:
        """Each deployment has a budget, an autoscaler and a policy of its own."""
        for overlay in OVERLAYS:
            for kind in ("PodDisruptionBudget", "HorizontalPodAutoscaler", "NetworkPolicy"):
                for name in ("routemaster-web", "routemaster-worker"):
                    one(overlay, kind, name)
        for _, found in each("HorizontalPodAutoscaler"):
            self.assertGreaterEqual(found["spec"]["minReplicas"], 2)  # else a budget of one stops it
            self.assertIn("Resource", {metric["type"] for metric in found["spec"]["metrics"]})


def references(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The kinds and names to which a resource refers."""
    if found["kind"] == "Deployment":
        spec, container = pod(found)
        yield "ServiceAccount", spec["serviceAccountName"]
        for source in container["envFrom"]:
            for key, kind in {"configMapRef": "ConfigMap", "secretRef": "Secret"}.items():
                if key in source:
                    yield kind, source[key]["name"]
        yield from (("Secret", volume["secret"]["secretName"]) for volume in spec["volumes"] if "secret" in volume)
    elif found["kind"] == "HorizontalPodAutoscaler":
        yield found["spec"]["scaleTargetRef"]["kind"], found["spec"]["scaleTargetRef"]["name"]
    elif found["kind"] == "ServiceMonitor":
        for endpoint in found["spec"]["endpoints"]:
            yield from (("Secret", key["name"]) for key in endpoint["basicAuth"].values())
            yield "Secret", endpoint["tlsConfig"]["ca"]["secret"]["name"]


def selector(found: dict[str, Any]) -> dict[str, str] | None:
    """By which labels a resource selects pods; None: it does not. A ServiceMonitor selects services."""
    spec = found.get("spec", {})
    if found["kind"] == "NetworkPolicy":
        return dict(spec["podSelector"]["matchLabels"])
    if found["kind"] in ("Deployment", "PodDisruptionBudget"):
        return dict(spec["selector"]["matchLabels"])
    return dict(spec["selector"]) if found["kind"] == "Service" else None


class CodeTests(SynchronousTestCase):
    """What the manifests say against the code."""

    def test_options(self) -> None:
        """Every variable belongs to an option, and with its value the command line is valid."""
        known = {variable for option in OPTIONS for variable in option.environment}
        for overlay, deployment in each("Deployment"):
            _, container = pod(deployment)
            environment = variables(overlay, container)
            unknown = {name for name in environment.keys() - known if not STANDARD.fullmatch(name)}
            self.assertEqual(unknown, set(), overlay)
            self.patch(os, "environ", environment)
            options = Options()
            options.parseOptions(container["args"])  # raises SystemExit for a fault in the variables, too
            self.assertEqual(deployment["metadata"]["name"], f"routemaster-{options.config.role}")

    def test_ports(self) -> None:
        """The bus listens on the port that service, probes, policy and monitor name."""
        for overlay in OVERLAYS:
            _, web = pod(one(overlay, "Deployment", "routemaster-web"))
            (port,) = web["ports"]
            self.assertEqual(variables(overlay, web)["ROUTEMASTER_HTTPS"], f"tcp:{port['containerPort']}")
            (service,) = one(overlay, "Service", "routemaster")["spec"]["ports"]
            self.assertEqual((service["targetPort"], port["name"]), ("https", "https"))
            (rule,) = one(overlay, "NetworkPolicy", "routemaster-web")["spec"]["ingress"]
            self.assertEqual([each["port"] for each in rule["ports"]], [port["containerPort"]])
            self.assertNotIn("ports", pod(one(overlay, "Deployment", "routemaster-worker"))[1])
            self.assertNotIn("ingress", one(overlay, "NetworkPolicy", "routemaster-worker")["spec"])
        for _, monitor in each("ServiceMonitor"):
            self.assertEqual([each["port"] for each in monitor["spec"]["endpoints"]], ["https"])

    def test_paths(self) -> None:
        """Probes ask routes without credentials, over TLS; liveness never depends on Redis."""
        paths = DOCUMENT["paths"]
        for overlay in OVERLAYS:
            _, web = pod(one(overlay, "Deployment", "routemaster-web"))
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                asked = web[probe]["httpGet"]
                self.assertEqual((asked["scheme"], asked["port"]), ("HTTPS", "https"))
                self.assertIn("get", paths[asked["path"]])
                self.assertEqual(paths[asked["path"]]["get"].get("security", []), [])
            self.assertEqual(web["livenessProbe"]["httpGet"]["path"], "/health")
            self.assertEqual(web["readinessProbe"]["httpGet"]["path"], "/health/ready")
        for _, monitor in each("ServiceMonitor"):
            self.assertIn("get", paths[monitor["spec"]["endpoints"][0]["path"]])

    def test_grace(self) -> None:
        """A pod has more time to stop than the bus takes; a balancer has time to notice before the port closes."""
        for overlay, deployment in each("Deployment"):
            spec, container = pod(deployment)
            config = load({}, variables(overlay, container), None)
            needed = config.drain_delay + max(config.grace, DRAIN) + MARGIN
            self.assertGreater(spec["terminationGracePeriodSeconds"], needed)
            if "readinessProbe" in container:
                probe = container["readinessProbe"]
                noticed = probe["periodSeconds"] * probe["failureThreshold"] + probe["timeoutSeconds"]
                self.assertGreaterEqual(config.drain_delay, noticed)

    def test_blocked_workers(self) -> None:
        """A worker, which nothing of Kubernetes can ask, has a parent process that watches it."""
        for _, deployment in each("Deployment"):
            _, container = pod(deployment)
            if "livenessProbe" not in container:
                self.assertGreaterEqual(int(container["args"][container["args"].index("--processes") + 1]), 2)

    def test_restricted(self) -> None:
        """Pods fulfil the Pod Security Standard `restricted`, and need nothing writable but an empty folder."""
        for overlay, deployment in each("Deployment"):
            spec, container = pod(deployment)
            self.assertEqual(spec["securityContext"]["runAsNonRoot"], True)
            self.assertEqual(spec["securityContext"]["seccompProfile"], {"type": "RuntimeDefault"})
            self.assertEqual(container["securityContext"], {
                "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            })  # fmt: skip
            user = re.search(r"^USER (\d+):(\d+)$", (ROOT / "Dockerfile").read_text("utf-8"), re.MULTILINE)
            assert user is not None
            ids = spec["securityContext"]["runAsUser"], spec["securityContext"]["runAsGroup"]
            self.assertEqual(ids, (int(user[1]), int(user[2])))
            self.assertEqual((spec["automountServiceAccountToken"], spec["enableServiceLinks"]), (False, False))
            writable = {each["mountPath"] for each in container["volumeMounts"] if not each.get("readOnly")}
            self.assertEqual(writable, {variables(overlay, container)["ROUTEMASTER_STATE_DIR"]})
            self.assertEqual({key for volume in spec["volumes"] for key in volume} - {"name"},
                             {"emptyDir", "secret"} if len(spec["volumes"]) == 2 else {"emptyDir"})  # fmt: skip
            self.assertIn("memory", container["resources"]["limits"])
            self.assertIn("cpu", container["resources"]["requests"])
        for _, namespace in each("Namespace"):
            enforced = namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"]
            self.assertEqual(enforced, "restricted")

    def test_certificate(self) -> None:
        """The bus reads the certificate from where the secret is mounted, by the keys of kubernetes.io/tls."""
        for overlay in OVERLAYS:
            spec, web = pod(one(overlay, "Deployment", "routemaster-web"))
            (mount,) = [each for each in web["volumeMounts"] if each["name"] == "tls"]
            environment = variables(overlay, web)
            for option, key in {"CERTIFICATE": "tls.crt", "PRIVATE_KEY": "tls.key"}.items():
                self.assertEqual(environment[f"ROUTEMASTER_{option}"], f"{mount['mountPath']}/{key}")
            (secret,) = [each["secret"]["secretName"] for each in spec["volumes"] if each["name"] == "tls"]
            for _, certificate in each("Certificate"):
                self.assertEqual(certificate["spec"]["secretName"], secret)

    def test_no_secrets(self) -> None:
        """No secret is in a map of settings, and no file of secrets is in the tree, but examples."""
        secret = {variable for option in OPTIONS if option.secret for variable in option.environment}
        for overlay in OVERLAYS:
            for found in built(overlay):
                if found["kind"] == "ConfigMap":
                    self.assertEqual(secret & found["data"].keys(), set())
        self.assertEqual([path.name for path in HERE.rglob("*.env")], [])
        self.assertIn("*.env", (HERE / ".gitignore").read_text("utf-8").splitlines())

    def test_egress(self) -> None:
        """Callbacks cannot reach the cloud's metadata, nor link-local addresses."""
        for _, policy in each("NetworkPolicy"):
            if policy["metadata"]["name"] != "routemaster-egress":
                continue
            blocks = [to["ipBlock"] for rule in policy["spec"]["egress"] for to in rule.get("to", ())]
            kept = {address for block in blocks for address in block["except"]}
            self.assertLessEqual({"169.254.0.0/16", "100.100.100.200/32", "fd00:ec2::254/128", "fe80::/10"}, kept)


def exposed() -> set[str]:
    """The names of the bus's gauges and histograms in an exposition."""
    gauges = {name: metric for name, metric in METRICS.items() if not metric.counter}
    names = [metric.name or name.replace(".", "_") for name, metric in gauges.items()]
    return {f"routemaster_{name}{end}" for name in names for end in ("", "_seconds")}


class MetricsTests(SynchronousTestCase):
    """Autoscaling on metrics."""

    rules = yaml.safe_load(
        (HERE / "components" / "autoscaling-on-metrics" / "adapter-rules.yaml").read_text("utf-8")
    )

    def test_exist(self) -> None:
        """The rules of the adapter query metrics that the bus exports."""
        asked = set()
        for rule in self.rules["external"]:
            names = re.findall(r"routemaster_[a-z_]+(?=\{)", rule["metricsQuery"] + rule["seriesQuery"])
            asked |= {re.sub("_(sum|count)$", "", name) for name in names}
        self.assertEqual(len(asked), 2)
        self.assertLessEqual(asked, exposed())

    def test_scaled_by(self) -> None:
        """Autoscalers ask for metrics that the rules make."""
        made = {rule["name"]["as"] for rule in self.rules["external"]}
        wanted = {
            metric["external"]["metric"]["name"]
            for _, scaler in each("HorizontalPodAutoscaler")
            for metric in scaler["spec"]["metrics"]
            if metric["type"] == "External"
        }
        self.assertEqual(wanted, made)


class RunTests(SystemCase):
    """The containers' command lines, without a cluster: as user 10001, without rights, files read-only."""

    def container(self, deployment: str, state: Path, port: int) -> Daemon:
        """A container of the overlay for one Redis, with what a cluster would give it: certificate and Redis."""
        _, container = pod(one("redis", "Deployment", deployment))
        isolated = [*ISOLATED, "sh", "-c", READ_ONLY, "pod", str(state), *UNPRIVILEGED] if can_run() else []
        program = RUN_BY.format(command=isolated, program=CHECKED) if isolated else RUN
        environment = variables("redis", container) | {
            "ROUTEMASTER_REDIS_URL": f"redis://{LOOPBACK}:{port}/0",
            "ROUTEMASTER_STATE_DIR": str(state),
            "ROUTEMASTER_CA_FILE": str(self.ca),
        }
        if "ROUTEMASTER_CERTIFICATE" in environment:
            pair = self.place / "tls.crt", self.place / "tls.key"
            issued = AUTHORITY.certificate("localhost", LOOPBACK)
            pair[0].write_bytes(issued.cert_chain_pems[0].bytes())
            pair[1].write_bytes(issued.private_key_pem.bytes())
            environment |= {"ROUTEMASTER_CERTIFICATE": str(pair[0]), "ROUTEMASTER_PRIVATE_KEY": str(pair[1])}
            environment["ROUTEMASTER_DRAIN_DELAY"] = "1"  # to wait for
        environment["ROUTEMASTER_LOG_FORMAT"] = "text"  # to read its port in
        daemon = Daemon(reactor, state, *container["args"], environment=environment, program=program)
        self.addCleanup(daemon.end)
        return daemon

    async def test_it_works(self) -> None:
        """Both accept, deliver, answer the probes, and stop by SIGTERM within a pod's time."""
        kubectl()
        redis = self.redis("--port", str(port := free_port()))
        self.assertIsNotNone(redis)
        web = self.container("routemaster-web", self.place / "web", port)
        worker = self.container("routemaster-worker", self.place / "worker", port)
        await web.start()
        await worker.start("ready")
        client, sink = self.client(web, "shop--change-me", self.ca), self.sink()
        await self.make_topics(client, "cats")
        await self.ok(client.subscribe(sink.url.replace(LOOPBACK, "localhost"), "cats", timeout=0))
        await self.ok(client.publish("cats", 1))
        await until(lambda: sink.received, "a delivery")
        for path in ("/health", "/health/ready"):
            await self.ok(client.ask("GET", path), 200)
        monitor = self.client(web, "prometheus--change-me", self.ca)
        await self.ok(monitor.ask("GET", "/metrics"), 200)
        web.signal("TERM")
        await web.line("the ports close in")
        await self.ok(client.ask("GET", "/health/ready"), 503)
        await self.ok(client.publish("cats", 2))
        self.assertEqual((await web.ended(), await worker.stop()), (0, 0))
        for daemon in (web, worker):
            self.assertNotIn("Traceback", daemon.log)
            self.assertNotIn("Read-only", daemon.log)


class PageTests(SynchronousTestCase):
    """docs/kubernetes.rst."""

    def test_folders(self) -> None:
        """It names each overlay and component; operations.rst leads to it."""
        page = (ROOT / "docs" / "kubernetes.rst").read_text("utf-8")
        for folder in [*(HERE / "overlays").iterdir(), *(HERE / "components").iterdir()]:
            self.assertIn(f"``{folder.relative_to(HERE)}``", page)
        self.assertIn("kubernetes.rst", OPERATIONS.read_text("utf-8"))

    def test_rules(self) -> None:
        """Its line makes the alerts a resource for the Prometheus Operator, and loses none."""
        page = (ROOT / "docs" / "kubernetes.rst").read_text("utf-8")
        (line,) = re.findall(r"^    (\(printf .+\)) >prometheusrule.yaml$", page, re.MULTILINE)
        made = yaml.safe_load(subprocess.check_output(["sh", "-c", line], cwd=ROOT, text=True))
        rules = yaml.safe_load((DEPLOY / "prometheus" / "routemaster.rules.yml").read_text("utf-8"))
        self.assertEqual((made["kind"], made["spec"]), ("PrometheusRule", rules))

    def test_addresses(self) -> None:
        """The addresses of Redis in it, and in the examples, are ones that the bus reads."""
        page = (ROOT / "docs" / "kubernetes.rst").read_text("utf-8")
        found = re.findall(r"^    (redis\S+)$", page, re.MULTILINE)
        for example in HERE.rglob("secrets.env.example"):
            found += re.findall(r"^ROUTEMASTER_REDIS_URL=(\S+)$", example.read_text("utf-8"), re.MULTILINE)
        kinds = {type(parse(url, None, None)).__name__ for url in found}
        self.assertEqual(kinds, {"RedisAddress", "SentinelAddress", "ClusterAddress"})
