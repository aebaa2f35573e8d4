"""/v1/webhook_endpoints through the official client, and where webhooks may not go."""

import ssl
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from ipaddress import ip_address
from typing import Any
from unittest.mock import Mock

import anyio
import openai
import pytest
from openai import InvalidWebhookSignatureError, OpenAI
from openai.types.webhooks import WebhookEndpointTestResult

from alignkit_server.clock import now
from alignkit_server.tables import Endpoint
from alignkit_server.webhooks import sender, targets
from tests.server.shapes import conforms
from tests.server.support import Running, create_job
from tests.server.webhooks.receiver import dripping, receiving

SUCCEEDED: Any = "fine_tuning.job.succeeded"
URL = "https://example.com/hook"


def test_an_endpoint_is_added_changed_and_removed(client: OpenAI) -> None:
    made = client.webhooks.create(event_types=[SUCCEEDED, SUCCEEDED], name="mine", url=URL)
    conforms(made)
    assert made.signing_secret.startswith("whsec_")
    assert made.event_types == [SUCCEEDED]
    assert made.signing_secret_hint == f"whsec_…{made.signing_secret[-4:]}"
    kept = client.webhooks.retrieve(made.id)
    conforms(kept)
    assert "signing_secret" not in kept.to_dict()
    changed = client.webhooks.update(made.id, name="other", event_types=["fine_tuning.job.failed"])
    conforms(changed)
    assert (changed.name, changed.url, changed.event_types) == ("other", URL, ["fine_tuning.job.failed"])
    rotated = client.webhooks.rotate_secret(made.id)
    conforms(rotated)
    assert rotated.signing_secret != made.signing_secret
    assert [found.id for found in client.webhooks.list()] == [made.id]
    assert made.signing_secret not in str(client.webhooks.list().to_dict())
    conforms(client.webhooks.event_types.list())
    deleted = client.webhooks.delete(made.id)
    conforms(deleted)
    for call in (client.webhooks.retrieve, client.webhooks.delete, client.webhooks.rotate_secret):
        with pytest.raises(openai.NotFoundError, match="No such webhook endpoint"):
            call(made.id)


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"url": "http://example.com"}, "url"),
        ({"url": "ftp://example.com"}, "url"),
        ({"url": "https://user:secret@example.com"}, "url"),
        ({"url": "https://example.com:99999"}, "url"),
        ({"url": "https://example.com:0"}, "url"),
        ({"url": "https://127.0.0.1/"}, "url"),
        ({"url": "https://[::1]/"}, "url"),
        ({"url": "https://10.1.2.3/"}, "url"),
        ({"url": "https://169.254.169.254/latest/meta-data"}, "url"),
        ({"url": "nothing"}, "url"),
        ({"url": "https://"}, "url"),
        ({"event_types": []}, "event_types"),
        ({"event_types": ["batch.completed"]}, "event_types.0"),
        ({"name": ""}, "name"),
    ],
)
def test_a_bad_endpoint_is_refused(client: OpenAI, changes: dict[str, Any], param: str) -> None:
    request: dict[str, Any] = {"event_types": [SUCCEEDED], "name": "mine", "url": URL}
    with pytest.raises(openai.BadRequestError) as refused:
        client.webhooks.create(**request | changes)
    assert refused.value.param == param
    assert client.webhooks.list().data == []


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("127.0.0.1", False),
        ("0.0.0.0", False),
        ("192.168.1.1", False),
        ("100.64.0.1", False),
        ("224.0.0.1", False),
        ("fe80::1", False),
        ("fc00::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:8.8.8.8", True),
        ("64:ff9b::7f00:1", False),
        ("64:ff9b::808:808", True),
        ("2002:7f00:1::", False),
        ("192.0.0.192", False),
        ("64:ff9b:1::7f00:1", False),
        ("fec0::1", False),
        ("::127.0.0.1", False),
        ("::ffff:0:127.0.0.1", False),
        ("::ffff:192.0.0.192", False),
        ("64:ff9b::c000:c0", False),
    ],
)
def test_what_is_public(address: str, public: bool) -> None:
    assert targets.public(ip_address(address)) is public


def test_a_name_that_leads_inside_is_refused_when_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [[(2, 1, 6, "", ("8.8.8.8", 443))], [(2, 1, 6, "", (a, 443)) for a in ("8.8.8.8", "10.0.0.1")]]
    monkeypatch.setattr(targets.socket, "getaddrinfo", lambda *_, **__: answers.pop(0))
    target = targets.resolve("https://example.com:8443/a?b=c", private=False)
    assert str(target.url) == "https://8.8.8.8:8443/a?b=c"
    assert (target.host, target.server_name) == ("example.com:8443", "example.com")
    with pytest.raises(targets.TargetError, match=r"10\.0\.0\.1 is not a public address"):
        targets.resolve("https://example.com/", private=False)


def test_a_sample_is_sent_and_signed(
    service: Running, client: OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    with receiving() as receiver:
        monkeypatch.setattr(service.settings, "webhook_private_targets", True)
        made = client.webhooks.create(event_types=[SUCCEEDED], name="mine", url=receiver.url)
        receiver.status = 302
        result = client.webhooks.test(made.id, event_type=SUCCEEDED)
        conforms(result)
        assert isinstance(result, WebhookEndpointTestResult)
        assert (result.status_code, result.event_type) == (302, SUCCEEDED)
        body, headers = receiver.received.pop()
        assert headers["host"] == f"127.0.0.1:{receiver.port}"
        event = client.webhooks.unwrap(body, headers, secret=made.signing_secret)
        assert (event.type, event.object) == (SUCCEEDED, "event")
        with pytest.raises(InvalidWebhookSignatureError):
            client.webhooks.unwrap(body + b" ", headers, secret=made.signing_secret)
        check_rotation(service, client, receiver, made)
        monkeypatch.setattr(service.settings, "webhook_private_targets", False)
        with pytest.raises(openai.BadRequestError, match="starts with https"):
            client.webhooks.test(made.id, event_type=SUCCEEDED)
    monkeypatch.setattr(service.settings, "webhook_private_targets", True)
    with pytest.raises(openai.BadRequestError, match="cannot be reached") as refused:
        client.webhooks.test(made.id, event_type=SUCCEEDED)
    assert refused.value.code == "webhook_unreachable"


def test_sending_loads_no_certificates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading them holds up the event loop, and with it everybody's requests, for each sample anew."""
    loaded = Mock(side_effect=AssertionError("certificates were loaded"))
    monkeypatch.setattr(ssl.SSLContext, "load_verify_locations", loaded)
    with receiving() as receiver:
        sending = partial(sender.send, receiver.url, (), {"id": "evt_1"}, private=True)
        assert anyio.run(sending) == receiver.status
    assert sender.CERTIFICATES.verify_mode == ssl.CERT_REQUIRED


def check_rotation(service: Running, client: OpenAI, receiver: Any, made: Any) -> None:
    """Both secrets are good for a day where that is asked, then the new one alone."""
    new = client.webhooks.rotate_secret(made.id, keep_old_secret_active_for_24_hours=True)
    client.webhooks.test(made.id, event_type=SUCCEEDED)
    body, headers = receiver.received.pop()
    for secret in (made.signing_secret, new.signing_secret):
        assert client.webhooks.unwrap(body, headers, secret=secret)
    with service.services.database.writing() as session:
        session.query(Endpoint).where(Endpoint.id == made.id).one().old_secret_until = now() - 1
    client.webhooks.test(made.id, event_type=SUCCEEDED)
    body, headers = receiver.received.pop()
    assert client.webhooks.unwrap(body, headers, secret=new.signing_secret)
    with pytest.raises(InvalidWebhookSignatureError):
        client.webhooks.unwrap(body, headers, secret=made.signing_secret)


def test_a_cancelled_job_is_announced(service: Running, client: OpenAI) -> None:
    job = create_job(client)
    client.fine_tuning.jobs.cancel(job.id)
    assert service.runner.announced[-1] == job.id


def test_another_projects_endpoint_is_not_there(service: Running, client: OpenAI) -> None:
    made = client.webhooks.create(event_types=[SUCCEEDED], name="mine", url=URL)
    with service.client(service.new_key("stranger")) as stranger:
        with pytest.raises(openai.NotFoundError):
            stranger.webhooks.test(made.id, event_type=SUCCEEDED)
        assert stranger.webhooks.list().data == []


def test_a_peer_that_drips_holds_up_nobody_else(
    service: Running, client: OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service.settings, "webhook_private_targets", True)
    monkeypatch.setattr(sender, "TIMEOUT_SECONDS", 3.0)
    with dripping() as url, ThreadPoolExecutor(45) as pool, service.http(service.new_key("other")) as other:
        made = client.webhooks.create(event_types=[SUCCEEDED], name="mine", url=url)
        body = {"event_type": SUCCEEDED}
        with service.http(client.api_key) as mine:
            path = f"/v1/webhook_endpoints/{made.id}/test"
            tests = [pool.submit(mine.post, path, json=body, timeout=60) for _ in range(45)]
            time.sleep(0.3)
            for asked in ("/v1/models", "/v1/files", "/healthz", "/readyz"):
                assert other.get(asked).status_code == 200
            assert sum(test.done() for test in tests) <= 20, "they were not answered before most of the tests"
            monkeypatch.setattr(sender, "TIMEOUT_SECONDS", 0.05)  # those that wait need not take long
            answers = [test.result() for test in tests]
    assert {answer.json()["error"]["code"] for answer in answers} == {"webhook_unreachable"}
    assert "did not answer within" in answers[0].json()["error"]["message"]
