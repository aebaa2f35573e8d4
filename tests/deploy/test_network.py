"""Who may talk to whom: the policies are evaluated as a cluster would, for every pair of pods."""

import itertools
from dataclasses import dataclass, field

import pytest

from tests.deploy.rendering import COMPONENT, OVERLAYS, Object, pods, rendered, with_components

CLIENT = {"namespace": {"alignkit-client": "true"}}
REDIS = {"namespace": {"alignkit-redis": "true"}}
STRANGER = {"namespace": {"kubernetes.io/metadata.name": "default"}}
PORTS = (53, 443, 5432, 6379, 8000, 8265, 10001)
FLOWS = {
    ("client", "server", 8000),
    ("server", "postgres", 5432),
    ("server", "vllm", 8000),
    ("server", "ray", 8265),
    ("ray", "vllm", 8000),
    *(("ray", "ray", port) for port in PORTS),
}
"""All that is needed, and so all that is allowed, from pods or to them."""
TO_THE_INTERNET = {("server", 443), ("model", 443)}


@dataclass(frozen=True)
class Peer:
    """A pod, of this namespace or another."""

    name: str
    labels: dict[str, str] = field(default_factory=dict)
    namespace: dict[str, str] | None = None


def peers(objects: tuple[Object, ...]) -> dict[str, Peer]:
    """One peer a component, and one of each other namespace."""
    components = {pod.component: Peer(pod.component, pod.metadata["labels"]) for pod in pods(objects)}
    others = {"client": CLIENT, "redis": REDIS, "stranger": STRANGER}
    return components | {name: Peer(name, **other) for name, other in others.items()}


def allowed(objects: tuple[Object, ...], source: Peer, target: Peer, port: int) -> bool:
    """Whether both ends' policies let it through; those of other namespaces' pods are not ours."""
    return _side(objects, source, "egress", "to", target, port) and _side(
        objects, target, "ingress", "from", source, port
    )


def _side(objects: tuple[Object, ...], pod: Peer, side: str, key: str, other: Peer, port: int) -> bool:
    if pod.namespace is not None:
        return True
    policies = [
        item["spec"]
        for item in objects
        if item["kind"] == "NetworkPolicy"
        and side.capitalize() in item["spec"]["policyTypes"]
        and _matches(item["spec"]["podSelector"], pod.labels)
    ]
    assert policies, f"no policy speaks of {pod.name}'s {side}"
    rules = [rule for policy in policies for rule in policy.get(side, ())]
    return any(_rule_allows(rule, key, other, port) for rule in rules)


def _rule_allows(rule: Object, key: str, other: Peer, port: int) -> bool:
    ports = {item["port"] for item in rule.get("ports", ())}
    return (not ports or port in ports) and any(_peer_matches(peer, other) for peer in rule[key])


def _peer_matches(rule: Object, peer: Peer) -> bool:
    if "ipBlock" in rule:  # pods have private addresses, which are excepted
        return False
    if (peer.namespace is not None) != ("namespaceSelector" in rule):
        return False
    return _matches(rule.get("namespaceSelector", {}), peer.namespace or {}) and _matches(
        rule.get("podSelector", {}), peer.labels
    )


def _matches(selector: Object, labels: dict[str, str]) -> bool:
    return selector.get("matchLabels", {}).items() <= labels.items()


def flows(objects: tuple[Object, ...]) -> set[tuple[str, str, int]]:
    """All that is allowed from pods of ours, or to them."""
    known = peers(objects)
    expected = {"server", "postgres", "vllm", "ray", "model", "client", "redis", "stranger"}
    assert known.keys() - {"backup"} == expected
    return {
        (source.name, target.name, port)
        for source, target in itertools.product(known.values(), known.values())
        for port in PORTS
        if not (source.namespace and target.namespace) and allowed(objects, source, target, port)
    }


def to_the_internet(objects: tuple[Object, ...]) -> set[tuple[str, int]]:
    """Which components reach it, on which ports; private and link-local addresses must not be part of it."""
    found = set()
    for item in objects:
        if item["kind"] != "NetworkPolicy":
            continue
        for rule in item["spec"].get("egress", ()):
            for peer in rule["to"]:
                if block := peer.get("ipBlock"):
                    assert {"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16"} <= set(
                        block["except"]
                    )
                    component = item["spec"]["podSelector"]["matchLabels"][COMPONENT]
                    found |= {(component, port["port"]) for port in rule["ports"]}
    return found


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_exactly_what_is_needed_is_allowed(overlay: str) -> None:
    assert flows(rendered(overlay)) == FLOWS


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_few_reach_the_internet_and_nobody_private_addresses_through_it(overlay: str) -> None:
    assert to_the_internet(rendered(overlay)) == TO_THE_INTERNET


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_component_lets_runs_reach_buckets_and_trackers_and_nothing_else(overlay: str) -> None:
    objects = with_components(overlay, "outside")
    assert flows(objects) == FLOWS
    assert to_the_internet(objects) == TO_THE_INTERNET | {("ray", 443)}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_component_lets_servers_reach_a_redis_and_nothing_else(overlay: str) -> None:
    objects = with_components(overlay, "redis")
    assert flows(objects) == FLOWS | {("server", "redis", 6379)}
    assert to_the_internet(objects) == TO_THE_INTERNET


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_component_lets_backups_reach_the_database_and_nothing_else(overlay: str) -> None:
    objects = with_components(overlay, "backup")
    assert flows(objects) == FLOWS | {("backup", "postgres", 5432)}
    assert to_the_internet(objects) == TO_THE_INTERNET
