"""The table of jobs and the page of one, by hand, in Chromium."""

import re
from pathlib import Path

import httpx
import pytest
from openai import OpenAI
from playwright.sync_api import Page, expect
from sqlalchemy import insert, inspect

from alignkit_server.clock import now
from alignkit_server.tables import ApiKey, Job, Project
from tests.server.page.browser import NARROW, Visitor, needs_chromium, violations
from tests.server.page.runs import MARKUP, STEPS, evaluated, finish, measured, run, tell
from tests.server.support import Running, create_job, upload

pytestmark = needs_chromium


def heading(page: Page, name: str | re.Pattern[str]) -> None:
    expect(page.get_by_role("heading", level=1, name=name)).to_be_visible()


def test_a_job_is_found_and_watched(service: Running, client: OpenAI, key: str, visitor: Visitor) -> None:
    """The quick test: signing in, the table, one job with its curves, live."""
    job_id = run(service, client, steps=30)
    page = visitor.signed_in(key)
    heading(page, "Jobs")
    expect(page.get_by_role("row").filter(has_text="running")).to_contain_text("30 / 60")
    page.get_by_role("link", name=re.compile("^ftjob-")).click()
    heading(page, job_id)
    expect(page.get_by_text("live", exact=True)).to_be_visible()
    expect(page.get_by_role("img", name="Curve of loss over the steps")).to_be_visible()
    measured(service, job_id, 31)
    expect(page.get_by_text("31 / 60")).to_be_visible()


@pytest.mark.slow
class TestSigningIn:
    def test_a_wrong_key_is_refused_in_words(self, visitor: Visitor) -> None:
        page = visitor.tab()
        page.get_by_label("Key", exact=True).fill("sk-wrong")
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_text("The API key is not valid")).to_be_visible()
        assert page.evaluate("localStorage.length + sessionStorage.length") == 0

    def test_a_key_that_expires_while_the_page_is_open_is_forgotten(
        self, service: Running, client: OpenAI, key: str, visitor: Visitor
    ) -> None:
        page = visitor.signed_in(key)
        with service.services.database.writing() as session:
            found = session.query(ApiKey).where(ApiKey.hint == key[-4:]).one()
            found.expires_at = now() - 1
        expect(page.get_by_text("has not expired")).to_be_visible()
        expect(page.get_by_label("Key", exact=True)).to_be_visible()
        assert page.evaluate("Object.keys(localStorage).includes('alignkit.key')") is False

    def test_two_tabs_sign_in_and_out_together(self, key: str, visitor: Visitor) -> None:
        first = visitor.signed_in(key)
        second = visitor.tab()
        heading(second, "Jobs")
        first.get_by_role("button", name="Sign out").click()
        expect(second.get_by_role("button", name="Sign in")).to_be_visible()

    def test_a_key_that_is_not_kept_opens_this_tab_only(self, key: str, visitor: Visitor) -> None:
        page = visitor.tab()
        page.get_by_label("Key", exact=True).fill(key)
        page.get_by_label("Stay signed in on this computer").uncheck()
        page.get_by_role("button", name="Sign in").click()
        heading(page, "Jobs")
        page.reload()
        heading(page, "Jobs")
        expect(visitor.tab().get_by_role("button", name="Sign in")).to_be_visible()

    def test_a_key_is_shown_what_its_scopes_allow(
        self, service: Running, client: OpenAI, project: str, visitor: Visitor
    ) -> None:
        job_id = run(service, client, steps=1)
        page = visitor.signed_in(service.new_key(project, "read"), f"#/jobs/{job_id}")
        heading(page, job_id)
        expect(page.get_by_role("button", name="Cancel")).to_have_count(0)
        expect(page.get_by_role("link", name="Clone")).to_have_count(0)


@pytest.mark.slow
class TestTheTable:
    def test_filters_are_part_of_the_address(
        self, service: Running, client: OpenAI, key: str, visitor: Visitor
    ) -> None:
        run(service, client, steps=0, metadata={"name": "first of them"})
        other = create_job(client, metadata={"name": "second"}).id
        page = visitor.signed_in(key)
        rows = page.get_by_role("row")
        expect(rows).to_have_count(3)
        page.get_by_label("Status").select_option("queued")
        expect(rows).to_have_count(2)
        expect(rows.last).to_contain_text("second")
        page.reload()
        expect(rows).to_have_count(2)
        page.get_by_label("Status").select_option("")
        page.get_by_role("searchbox").fill("FIRST")
        expect(rows.last).to_contain_text("first of them")
        expect(page.get_by_role("link", name="second")).to_have_count(0)
        page.get_by_role("searchbox").fill(other)
        expect(page.get_by_role("link", name="second")).to_be_visible()

    def test_a_job_that_starts_is_seen_to_start(
        self, service: Running, client: OpenAI, key: str, visitor: Visitor
    ) -> None:
        page = visitor.signed_in(key)
        expect(page.get_by_text("No job yet")).to_be_visible()
        job = create_job(client)
        expect(page.get_by_text(re.compile(r"\d+\. in the queue"))).to_be_visible()
        service.ledger.transition(job.id, "running", only_from=("queued",))
        expect(page.get_by_role("cell", name="running")).to_be_visible()

    def test_what_a_job_took_is_the_time_that_it_ran(
        self, service: Running, client: OpenAI, key: str, visitor: Visitor
    ) -> None:
        job_id = run(service, client, steps=1)
        page = visitor.signed_in(key)
        expect(page.get_by_role("row").last).to_contain_text("running")
        with service.services.database.writing() as session:
            job = session.query(Job).where(Job.id == job_id).one()
            job.created_at, job.running_since = now() - 9000, now() - 200  # it waited for long
        finish(service, job_id)
        expect(page.get_by_role("cell", name=re.compile("^took 3 min 2"))).to_be_visible()

    def test_two_thousand_jobs_do_not_make_it_stutter(
        self, service: Running, client: OpenAI, key: str, project: str, visitor: Visitor
    ) -> None:
        first = create_job(client)
        with service.services.database.writing() as session:
            row = session.query(Job).where(Job.id == first.id).one()
            names = [column.key for column in inspect(Job).column_attrs if column.key != "seq"]
            values = {name: getattr(row, name) for name in names}
            values |= {"status": "succeeded", "idempotency_key": None}
            session.execute(insert(Job), [{**values, "id": f"ftjob-copy{n:04}"} for n in range(1999)])
        page = visitor.signed_in(key)
        expect(page.get_by_text("2,000 jobs, page 1 of 40")).to_be_visible()
        expect(page.get_by_role("row")).to_have_count(51)
        page.evaluate(
            """() => {
              window.longest = 0;
              new PerformanceObserver((list) => {
                for (const entry of list.getEntries()) window.longest = Math.max(window.longest, entry.duration);
              }).observe({ type: "longtask" });
            }"""
        )
        page.get_by_role("button", name="Older").click()
        expect(page.get_by_text("2,000 jobs, page 2 of 40")).to_be_visible()
        page.get_by_role("searchbox").fill("copy1234")
        expect(page.get_by_role("row")).to_have_count(2)
        page.wait_for_timeout(4000)  # a refresh comes by
        assert page.evaluate("window.longest") < 500  # milliseconds, on a machine that others use too


@pytest.mark.slow
class TestOneJob:
    def test_actions_change_its_status(
        self, service: Running, client: OpenAI, key: str, visitor: Visitor
    ) -> None:
        job = create_job(client)
        page = visitor.signed_in(key, f"#/jobs/{job.id}")
        page.get_by_role("button", name="Pause").click()
        expect(page.locator("main .status")).to_contain_text("paused")
        page.get_by_role("button", name="Resume").click()
        expect(page.locator("main .status")).to_contain_text("queued")
        page.get_by_role("button", name="Cancel").click()
        page.get_by_role("dialog").get_by_role("button", name="Keep").click()
        expect(page.locator("main .status")).to_contain_text("queued")
        page.get_by_role("button", name="Cancel").click()
        page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
        expect(page.locator("main .status")).to_contain_text("cancelled")
        expect(page.get_by_role("button", name="Cancel")).to_have_count(0)

    def test_answers_of_two_evaluations_stand_side_by_side(
        self, service: Running, client: OpenAI, key: str, visitor: Visitor
    ) -> None:
        job_id = run(service, client, collapses=True)
        page = visitor.signed_in(key, f"#/jobs/{job_id}")
        table = page.get_by_role("table", name="Answers of two evaluations")
        expect(table.get_by_role("columnheader")).to_have_text(
            ["Prompt", "Before training", "Step 60", "From the data"]
        )
        expect(table).to_contain_text("The sky is the sky is the sky")
        expect(page.get_by_text("Collapsed at step 45, 60")).to_be_visible()
        page.get_by_label("Right").select_option("15")
        expect(table.get_by_role("columnheader").nth(2)).to_have_text("Step 15")
        expect(table).to_contain_text("Yes, by day and in clear weather.")

    def test_what_comes_is_shown_as_it_comes(
        self, service: Running, client: OpenAI, key: str, visitor: Visitor
    ) -> None:
        job_id = run(service, client, steps=44)
        page = visitor.signed_in(key, f"#/jobs/{job_id}")
        expect(page.get_by_text("44 / 60")).to_be_visible()
        tell(service, job_id, "The disk is nearly full", level="warn")
        expect(page.get_by_text("The disk is nearly full")).to_be_visible()
        measured(service, job_id, 45)
        evaluated(service, job_id, 45, sound=False)
        expect(page.get_by_text("Collapsed at step 45")).to_be_visible()
        finish(service, job_id)
        expect(page.locator("main .status")).to_contain_text("succeeded")
        expect(page.get_by_role("table", name="Checkpoints").get_by_role("row")).to_have_count(3)
        expect(page.get_by_role("link", name=re.compile("^Chat with it"))).to_be_visible()

    def test_checkpoints_show_the_main_metrics_and_the_others_on_request(
        self, service: Running, client: OpenAI, key: str, visitor: Visitor
    ) -> None:
        job_id = run(service, client, collapses=True)
        metrics = {f"valid_answers_measure_{number}": 0.5 for number in range(30)} | {"train_loss": 0.1}
        main = ["loss", "rewards_accuracies", "rewards_margins", "rewards_ece", "mean_token_accuracy"]
        metrics |= {f"valid_{name}": 0.25 for name in reversed(main)}
        for step in (30, 45):
            name = f"ft:{job_id}:{step}"
            service.ledger.add_checkpoint(job_id, step=step, model_name=name, metrics=metrics, path="p")
        page = visitor.signed_in(key, f"#/jobs/{job_id}")
        table = page.get_by_role("table", name="Published checkpoints")
        heads = [f"valid {name.replace('_', ' ')}" for name in main[:4]]
        expect(table.get_by_role("columnheader")).to_have_text(["Step", "Model", *heads, "Guard", "Created"])
        expect(table.get_by_role("row").filter(has_text=":30")).to_contain_text("sound")
        expect(table.get_by_role("row").filter(has_text=":45")).to_contain_text("collapsed")
        page.get_by_role("button", name="All 36 metrics").focus()
        page.keyboard.press("Enter")
        expect(table.get_by_role("columnheader")).to_have_count(40)
        expect(page.get_by_role("button", name="Main metrics")).to_have_attribute("aria-expanded", "true")
        assert violations(page) == []

    def test_a_lost_connection_is_told_and_made_up_for(
        self, service: Running, client: OpenAI, key: str, visitor: Visitor
    ) -> None:
        job_id = run(service, client, steps=10)
        page = visitor.signed_in(key, f"#/jobs/{job_id}")
        expect(page.get_by_text("10 / 60")).to_be_visible()
        page.route("**/v1/**", lambda route: route.abort())
        page.get_by_role("button", name="Pause").click()
        expect(page.get_by_role("status").filter(has_text="does not answer")).to_be_visible()
        page.unroute("**/v1/**")
        measured(service, job_id, 11)
        expect(page.get_by_text("11 / 60")).to_be_visible()

    def test_a_job_that_is_gone_is_said_to_be(
        self, service: Running, client: OpenAI, key: str, visitor: Visitor
    ) -> None:
        page = visitor.signed_in(key, "#/jobs/ftjob-nothing")
        expect(page.get_by_role("alert")).to_contain_text("No such fine-tuning job: 'ftjob-nothing'")

    def test_a_job_that_is_deleted_under_its_page_is_said_to_be(
        self, service: Running, client: OpenAI, key: str, visitor: Visitor
    ) -> None:
        job = create_job(client)
        page = visitor.signed_in(key, f"#/jobs/{job.id}")
        expect(page.get_by_role("button", name="Pause")).to_be_visible()
        with service.services.database.writing() as session:
            row = session.query(Job).where(Job.id == job.id).one()
            row.project_id = session.query(Project).where(Project.name != row.project_id).first().id
        page.get_by_role("button", name="Pause").click()
        expect(page.get_by_role("status").filter(has_text="No such fine-tuning job")).to_be_visible()

    def test_the_recipe_and_an_estimate_are_given_when_asked_for(
        self, service: Running, client: OpenAI, key: str, visitor: Visitor
    ) -> None:
        job_id = run(service, client, steps=2)
        finish(service, job_id)
        page = visitor.signed_in(key, f"#/jobs/{job_id}")
        page.get_by_role("button", name="Show the recipe").click()
        expect(page.get_by_label("recipe.yaml")).to_contain_text("method:")
        with page.expect_download() as download:
            page.get_by_role("button", name="Download the recipe").click()
        assert "method:" in Path(download.value.path()).read_text(encoding="utf-8")
        page.get_by_role("button", name="Compare with an estimate").click()
        expect(page.get_by_role("table", name=re.compile("Estimate"))).to_contain_text("12,345")
        expect(
            page.get_by_role("row", name=re.compile("^Peak memory")).get_by_role("cell").last
        ).to_have_text("1.5 GiB")

    def test_the_log_is_shown_when_asked_for_and_read_again(
        self, service: Running, client: OpenAI, key: str, visitor: Visitor
    ) -> None:
        job_id = run(service, client, steps=2)
        page = visitor.signed_in(key, f"#/jobs/{job_id}")
        page.get_by_text("lines of the training process").click()
        expect(page.get_by_text("There is no log")).to_be_visible()
        log = service.settings.jobs_dir / job_id / "train.log"
        log.parent.mkdir(parents=True)
        log.write_text(f"{MARKUP}\nloss 0.5\n")
        expect(page.get_by_label("train.log")).to_have_text(f"{MARKUP}\nloss 0.5")
        assert violations(page) == []


@pytest.mark.slow
class TestForEverybody:
    def test_nothing_that_others_wrote_runs(
        self, service: Running, client: OpenAI, key: str, visitor: Visitor
    ) -> None:
        job_id = run(service, client, text=MARKUP, metadata={"name": MARKUP})
        page = visitor.signed_in(key)
        expect(page.get_by_role("link", name=MARKUP)).to_be_visible()
        page.get_by_role("link", name=MARKUP).click()
        heading(page, MARKUP)
        expect(page.get_by_role("table", name="Answers of two evaluations")).to_contain_text(MARKUP)
        expect(page.get_by_text(f"Training started: {STEPS} steps {MARKUP}")).to_be_visible()
        assert page.locator("main img, main script").count() == 0
        assert httpx.get(f"{service.url}/v1/fine_tuning/jobs/{job_id}").status_code == 401

    def test_what_a_script_would_try_is_refused(self, key: str, visitor: Visitor) -> None:
        page = visitor.signed_in(key)
        refused = page.evaluate(
            """() => new Promise((resolve) => {
              const tries = {
                markup: () => { document.body.innerHTML = "<img src=x onerror=alert(1)>"; },
                code: () => eval("1"),
              };
              const refused = (name) => { try { tries[name](); return false; } catch { return true; } };
              // In a task of its own, since what a debugger evaluates is let past the policy.
              setTimeout(() => resolve(Object.keys(tries).filter(refused)));
            })"""
        )
        assert refused == ["markup", "code"]
        assert visitor.wrong
        visitor.wrong.clear()

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_axe_finds_nothing(
        self, service: Running, client: OpenAI, key: str, visitor: Visitor, scheme: str
    ) -> None:
        job_id = run(service, client, collapses=True)
        page = visitor.tab()
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        assert violations(page) == []
        page.close()
        page = visitor.signed_in(key)
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        expect(page.get_by_role("row").last).to_contain_text("running")
        assert violations(page) == []
        page.goto(f"{service.url}/#/jobs/{job_id}")
        expect(page.get_by_role("img").first).to_be_visible()
        assert violations(page) == []

    def test_a_narrow_screen_shows_everything_without_scrolling_sideways(
        self, service: Running, client: OpenAI, key: str, visitor: Visitor
    ) -> None:
        job_id = run(service, client)
        many = {f"valid_measure_{number}": 0.5 for number in range(20)}
        service.ledger.add_checkpoint(job_id, step=30, model_name=f"ft:{job_id}", metrics=many, path="p")
        page = visitor.signed_in(key)
        page.set_viewport_size(NARROW)  # type: ignore[arg-type]
        for place in ("#/jobs", f"#/jobs/{job_id}"):
            page.goto(f"{service.url}/{place}")
            heading(page, re.compile("."))
            page.wait_for_timeout(600)
            assert page.evaluate("document.documentElement.scrollWidth") <= NARROW["width"]

    def test_the_keyboard_reaches_a_job(
        self, service: Running, client: OpenAI, key: str, visitor: Visitor
    ) -> None:
        job_id = create_job(client, training_file=upload(client)).id
        page = visitor.signed_in(key)
        page.get_by_role("link", name=re.compile("^ftjob-")).wait_for()
        for _ in range(30):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.title") == job_id:
                break
        page.keyboard.press("Enter")
        heading(page, job_id)
        page.wait_for_function("document.activeElement.tagName === 'H1'")  # a moment after it is drawn
