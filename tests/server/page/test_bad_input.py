"""What goes wrong while the page is open, and what others wrote, in Chromium."""

import shutil
from pathlib import Path

import pytest
from openai import OpenAI
from playwright.sync_api import Page, expect

from alignkit_server.tables import ApiKey, Job, Project
from tests.server.models.test_exports import Tuned, small_disk_for_exports
from tests.server.page.browser import Visitor, needs_chromium, violations
from tests.server.page.runs import MARKUP, finish, run
from tests.server.support import BASE_MODEL, Running, create_job, upload

pytestmark = [needs_chromium, pytest.mark.slow]


def alert(page: Page, text: str) -> None:
    expect(page.get_by_role("alert").filter(has_text=text)).to_be_visible()


class TestTheKey:
    def test_one_that_is_revoked_under_a_watched_job_is_forgotten(
        self,
        service: Running,
        client: OpenAI,
        project: str,
        visitor: Visitor,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Nothing asks for anything: the stream of events ends."""
        monkeypatch.setattr("alignkit_server.jobs.stream.KEY_SECONDS", 0.5)
        job_id, key = run(service, client, steps=1), service.new_key(project)
        page = visitor.signed_in(key, f"#/jobs/{job_id}")
        expect(page.get_by_text("live", exact=True)).to_be_visible()
        with service.services.database.writing() as session:
            session.delete(session.query(ApiKey).where(ApiKey.hint == key[-4:]).one())
        alert(page, "has not been revoked")
        expect(page.get_by_label("Key", exact=True)).to_be_visible()
        expect(page.get_by_text(job_id)).to_have_count(0)
        assert page.evaluate("Object.keys(localStorage).includes('alignkit.key')") is False

    def test_one_without_the_scope_is_refused_where_it_comes_by_address(
        self, service: Running, client: OpenAI, project: str, visitor: Visitor
    ) -> None:
        file = upload(client)
        page = visitor.signed_in(service.new_key(project, "read"), "#/projects")
        for place in ("projects", "engines"):
            page.goto(f"{visitor.url}/#/{place}")
            alert(page, "expected admin")
        page.goto(f"{visitor.url}/#/new?file={file}")
        page.get_by_role("button", name="Start the job").click()
        alert(page, "expected train")
        page.goto(f"{visitor.url}/#/playground")
        page.get_by_label("Message").fill("Hello")
        page.get_by_role("button", name="Ask both").click()
        expect(page.get_by_label("Conversation, left").get_by_role("alert")).to_contain_text(
            "expected inference"
        )
        assert client.fine_tuning.jobs.list().data == []


class TestWhatIsGone:
    def test_a_job_that_goes_while_its_events_stream_is_said_to_be_gone(
        self, service: Running, client: OpenAI, key: str, visitor: Visitor
    ) -> None:
        job_id = run(service, client, steps=1)
        page = visitor.signed_in(key, f"#/jobs/{job_id}")
        expect(page.get_by_text("live", exact=True)).to_be_visible()
        delete(service, job_id)
        alert(page, "No such fine-tuning job")
        expect(page.get_by_text("live", exact=True)).to_have_count(0)

    def test_a_job_that_goes_leaves_the_table(
        self, service: Running, client: OpenAI, key: str, visitor: Visitor
    ) -> None:
        file = upload(client)
        gone, _ = (create_job(client, training_file=file, metadata={"name": name}) for name in ("old", "new"))
        page = visitor.signed_in(key)
        expect(page.get_by_role("link", name="old")).to_be_visible()
        delete(service, gone.id)
        expect(page.get_by_role("link", name="old")).to_have_count(0)
        expect(page.get_by_role("link", name="new", exact=True)).to_be_visible()
        expect(page.get_by_role("alert")).to_have_count(0)

    def test_an_address_that_is_none_leads_back(self, key: str, visitor: Visitor) -> None:
        page = visitor.signed_in(key, "#/nowhere")
        expect(page.get_by_role("heading", level=1, name="No such page")).to_be_visible()
        page.get_by_role("link", name="All jobs").click()
        expect(page.get_by_role("heading", level=1, name="Jobs")).to_be_visible()


class TestALostConnection:
    def test_the_table_says_so_and_recovers_by_itself(
        self, client: OpenAI, key: str, visitor: Visitor
    ) -> None:
        create_job(client, metadata={"name": "kept"})
        page = visitor.signed_in(key)
        expect(page.get_by_role("link", name="kept")).to_be_visible()
        page.route("**/v1/**", lambda route: route.abort())
        alert(page, "does not answer")
        expect(page.get_by_role("link", name="kept")).to_be_visible()
        page.unroute("**/v1/**")
        expect(page.get_by_role("alert")).to_have_count(0)

    def test_an_upload_that_breaks_off_is_said_and_can_be_repeated(
        self, client: OpenAI, key: str, visitor: Visitor
    ) -> None:
        page = visitor.signed_in(key, "#/files")
        expect(page.get_by_text("No file yet.")).to_be_visible()
        page.route("**/v1/files", lambda route: route.abort())
        file = {"name": "rows.jsonl", "mimeType": "a/b", "buffer": b"{}"}
        page.get_by_label("Upload").set_input_files(file)  # type: ignore[arg-type]
        alert(page, "does not answer")
        page.unroute("**/v1/files")
        page.get_by_label("Upload").set_input_files(file)  # type: ignore[arg-type]
        expect(page.get_by_role("row").last).to_contain_text("rows.jsonl")
        expect(page.get_by_role("alert")).to_have_count(0)

    def test_an_answer_that_breaks_off_is_no_preference(self, key: str, visitor: Visitor) -> None:
        page = visitor.signed_in(key, "#/playground")
        page.get_by_label("Message").fill("Break")
        page.get_by_role("button", name="Ask both").click()
        answer = page.get_by_label("Conversation, left")
        expect(answer.get_by_role("alert")).to_be_visible()
        expect(answer).to_contain_text(BASE_MODEL)  # the word that came
        expect(page.get_by_role("button", name="Left is better")).to_be_disabled()


class TestFilesAndForms:
    def test_a_file_that_is_refused_says_why(self, client: OpenAI, key: str, visitor: Visitor) -> None:
        page = visitor.signed_in(key, "#/files")
        content = bytes(10 * 2**20 + 1)
        file = {"name": "rows.jsonl", "mimeType": "a/b", "buffer": content}
        page.get_by_label("Upload").set_input_files(file)  # type: ignore[arg-type]
        alert(page, "10")
        assert client.files.list().data == []
        assert violations(page) == []

    def test_a_model_that_has_not_the_form_says_why(
        self, service: Running, client: OpenAI, key: str, visitor: Visitor, tmp_path: Path
    ) -> None:
        """Its base has no weights here."""
        tuned = finish(service, run(service, client, steps=1), path=str(tmp_path))
        page = visitor.signed_in(key, "#/models")
        row = page.get_by_role("row").filter(has_text=tuned)
        row.get_by_label(f"Form of {tuned}").select_option("merged")
        row.get_by_role("button", name="Download").click()
        notice = page.get_by_role("status").filter(has_text="cannot")
        expect(notice).to_be_visible(timeout=120_000)
        assert str(tmp_path) not in notice.inner_text()
        expect(row.get_by_role("button", name="Download")).to_be_enabled()

    def test_a_full_disk_during_an_export_is_said(
        self, service: Running, tmp_path: Path, visitor: Visitor
    ) -> None:
        with small_disk_for_exports(service, tmp_path / "small"):
            tuned = Tuned(service, tmp_path)
            page = visitor.signed_in(tuned.key, "#/models")
            row = page.get_by_role("row").filter(has_text=tuned.name)
            row.get_by_label(f"Form of {tuned.name}").select_option("gguf")
            row.get_by_role("button", name="Download").click()
            notice = page.get_by_role("status").filter(has_text="disk is full")
            expect(notice).to_be_visible(timeout=120_000)
        with service.client(tuned.key) as client:
            client.models.delete(tuned.name)
        shutil.rmtree(tuned.base)  # other tests count the base models


def test_names_that_others_gave_run_nowhere(service: Running, project: str, visitor: Visitor) -> None:
    """Nothing may be drawn or run in the places that test_jobs.py does not go to."""
    key = service.new_key(project, "read", "train", "inference", "admin")
    with service.services.database.reading() as session:
        project_id = session.query(Project).where(Project.name == project).one().id
    jobs = []
    with service.client(key) as mine:
        for number in range(2):
            job_id = run(service, mine, steps=30, text=MARKUP, metadata={"name": f"{number} {MARKUP}"})
            jobs.append(job_id)
    service.ledger.transition(
        jobs[0], "failed", only_from=("running",), error={"code": "failed", "message": MARKUP}
    )
    with service.http(key) as http:
        path = f"/v1/organization/projects/{project_id}/api_keys"
        assert http.post(path, json={"name": MARKUP, "scopes": ["read"]}).is_success
    page = visitor.signed_in(key, f"#/compare?jobs={','.join(jobs)}")
    for place in (
        f"compare?jobs={','.join(jobs)}",
        f"jobs/{jobs[0]}",
        f"projects/{project_id}",
        f"new?clone={jobs[1]}",
    ):
        page.goto(f"{visitor.url}/#/{place}")
        expect(page.locator("main")).to_contain_text("<script>alert(2)</script>")
        assert page.locator("main img, main script").count() == 0, place


def delete(service: Running, job_id: str) -> None:
    """Take the job out of its project: for the project it no longer exists."""
    with service.services.database.writing() as session:
        job = session.query(Job).where(Job.id == job_id).one()
        job.project_id = session.query(Project).where(Project.id != job.project_id).first().id
