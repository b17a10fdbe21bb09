"Alerts on real channels: a webhook receiver and a mail server on this machine, up and down."

import json
import os
import socketserver
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from housemlops.alert import (
    about_month,
    about_retraining,
    append_alert,
    listed,
    log_path,
    message_id,
    notify,
    read_alerts,
)
from housemlops.core.files import write_json
from housemlops.settings import settings

VERDICT = {
    "month": "2009-06",
    "complete": True,
    "verdict": "drift",
    "alarm": True,
    "retrain": True,
    "reasons": ["rooms have moved: distance 0.31 {{ 7 }}"],
    "rows": 214,
    "labelled": 131,
    "drifted": ["rooms"],
    "mae": 15410.4,
    "mae_low": 13020.0,
    "mae_high": 18100.0,
    "expected_mae": 14850.0,
    "mae_ratio": 1.0377,
    "coverage": 0.91,
    "version": 2,
}
RETRAINING = {
    "month": "2009-06",
    "promoted": False,
    "reasons": ["MAE is 15,766, and at most 14,000 is asked"],
    "version": 3,
    "champion_version": 2,
    "metrics": {"mae": 15766.0},
    "duel": None,
    "failed": "",
}


@pytest.fixture
def month(tmp_path):
    folder = tmp_path / "history/2009-06"
    folder.mkdir(parents=True)
    write_json(folder / "verdict.json", VERDICT)
    write_json(folder / "run.json", {"asked": True, "why_not": ""})
    write_json(folder / "retraining.json", RETRAINING)
    (folder / "report.html").write_text("report")
    return folder


@pytest.fixture
def chosen(tmp_path, monkeypatch):
    "Settings with a state folder of their own and no channel but the log"
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path / "airflow"))
    found = settings()
    found.paths.state, found.alerts.webhook, found.alerts.email = (
        tmp_path / "state",
        "",
        "",
    )
    return found


@pytest.fixture
def webhook():
    "A receiver: its address, what it got, and the status it answers with"

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self):
            server.got.append(
                (
                    self.path,
                    json.loads(self.rfile.read(int(self.headers["Content-Length"]))),
                )
            )
            self.send_response(server.status)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    server.got, server.status, server.address = (
        [],
        200,
        f"http://127.0.0.1:{server.server_port}/hook/s3cret?token=s3cret",
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def mail(monkeypatch):
    "A mail server that takes everything, as Airflow's connection smtp_default"

    class Session(socketserver.StreamRequestHandler):
        def say(self, line):
            self.wfile.write(line.encode() + b"\r\n")

        def handle(self):
            self.say("220 here")
            letter = {"to": []}
            for line in self.rfile:
                word = line.decode().strip()
                if word.upper().startswith("RCPT"):
                    letter["to"].append(word[word.index("<") + 1 : word.index(">")])
                if word.upper() == "DATA":
                    self.say("354 go on")
                    letter["text"] = b"".join(iter(self.rfile.readline, b".\r\n"))
                    server.got.append(letter)
                self.say("221 bye" if word.upper() == "QUIT" else "250 fine")
                if word.upper() == "QUIT":
                    return

    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Session)
    server.daemon_threads, server.got = True, []
    monkeypatch.setenv(
        "AIRFLOW_CONN_SMTP_DEFAULT",
        json.dumps(
            {
                "conn_type": "smtp",
                "host": "127.0.0.1",
                "port": server.server_address[1],
                "extra": {"disable_ssl": True, "disable_tls": True},
            }
        ),
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_the_four_questions(month):
    message = about_month(month)
    assert message["subject"] == "House prices, 2009-06: drift" and message["urgent"]
    assert message["text"] == (
        "Rooms have moved: distance 0.31 {{ 7 }}. Over 131 sales with a price the MAE is 15,410 (between 13,020 and 18,100), 1.04 times "
        "the 14,850 of its test. A retraining has been asked for."
    )
    assert message["links"] == {"report": str(month / "report.html")}
    assert about_retraining(month)["text"] == (
        "Version 3, trained because 2009-06 asked for it, was refused: MAE is 15,766, and at most 14,000 is asked. "
        "Version 2 goes on answering."
    )


@pytest.mark.parametrize(
    "change",
    [
        {
            "verdict": "insufficient data",
            "reasons": ["0 sales"],
            "rows": 0,
            "labelled": 0,
            "drifted": [],
            **dict.fromkeys(("mae", "mae_low", "mae_high", "mae_ratio", "coverage")),
        },
        {
            "verdict": "no champion",
            "reasons": ["no model has been promoted yet"],
            "version": None,
            "mae": None,
            "expected_mae": None,
            "mae_ratio": None,
        },
        {"month": None, "verdict": "ok", "reasons": []},
    ],
)
def test_a_verdict_without_figures_is_told_too(month, change):
    write_json(month / "verdict.json", VERDICT | change)
    message = about_month(month)
    assert (
        message["text"]
        and "None" not in message["text"] + message["subject"]
        and message["urgent"] == (change["verdict"] != "ok")
    )


@pytest.mark.parametrize(
    "change, part",
    [
        (
            {
                "promoted": True,
                "reasons": [],
                "duel": {"rows": 214, "mae": 13900.0, "champion_mae": 14600.0},
            },
            "is champion now, in place of version 2.",
        ),
        (
            {"promoted": True, "reasons": [], "champion_version": None},
            "is champion now.",
        ),
        ({"champion_version": None}, "There is no champion."),
        (
            {
                "failed": "the stage train was killed",
                "promoted": False,
                "version": None,
                "metrics": None,
            },
            "asked for failed: the stage train was killed. Version 2 goes on",
        ),
    ],
)
def test_what_became_of_a_retraining(month, change, part):
    write_json(month / "retraining.json", RETRAINING | change)
    text = about_retraining(month)["text"]
    assert part in text and "None" not in text


def test_a_long_list_is_cut():
    assert (
        listed([str(i) for i in range(80)]) == "0; 1; 2; 3; and 76 more, in the report"
    )


def test_a_message_reaches_webhook_and_mailbox_once(month, chosen, webhook, mail):
    chosen.alerts.webhook, chosen.alerts.email = (
        webhook.address,
        "one@example.org, two@example.org",
    )
    message = about_month(month)
    assert notify(message, chosen=chosen) == {
        "log": "sent",
        "webhook": "sent",
        "email": "sent",
    }
    assert set(notify(message, chosen=chosen).values()) == {"already sent"}
    ((path, body),) = webhook.got
    assert (
        path == "/hook/s3cret?token=s3cret"
        and body["text"] == f"{message['subject']}\n{message['text']}"
        and body["facts"]["mae_ratio"] == 1.0377
    )
    (letter,) = mail.got
    assert (
        letter["to"] == ["one@example.org", "two@example.org"]
        and b"Subject: House prices, 2009-06: drift" in letter["text"]
    )
    assert (
        "AIRFLOW_CONN_HOUSEMLOPS_WEBHOOK" not in os.environ
        and "s3cret" not in log_path(chosen).read_text()
    )


def test_good_news_stay_in_the_log(month, chosen, webhook):
    chosen.alerts.webhook = webhook.address
    write_json(month / "verdict.json", VERDICT | {"verdict": "ok", "reasons": []})
    assert (
        notify(about_month(month), chosen=chosen) == {"log": "sent"} and not webhook.got
    )


def test_a_channel_that_is_down_is_tried_again_and_no_other(
    month, chosen, webhook, mail, capsys
):
    chosen.alerts.webhook, chosen.alerts.email, webhook.status = (
        webhook.address,
        "one@example.org",
        503,
    )
    message = about_retraining(month)
    assert notify(message, chosen=chosen) == {
        "log": "sent",
        "webhook": "not sent: it answered 503",
        "email": "sent",
    }
    assert "[webhook: not sent: it answered 503]" in capsys.readouterr().out
    webhook.status = 200
    assert notify(message, chosen=chosen) == {
        "webhook": "sent",
        "log": "already sent",
        "email": "already sent",
    }
    assert len(mail.got) == 1 and [line["channels"] for line in read_alerts(chosen)][
        -1
    ] == {"webhook": "sent"}


def test_nothing_that_can_be_wrong_with_a_channel_raises(month, chosen, monkeypatch):
    monkeypatch.delenv("AIRFLOW_CONN_SMTP_DEFAULT", raising=False)
    chosen.alerts.webhook, chosen.alerts.email = (
        "http://127.0.0.1:9/hook/s3cret",
        "one@example.org",
    )
    assert notify(about_month(month), chosen=chosen) == {
        "log": "sent",
        "webhook": "not sent: it cannot be reached",
        "email": "not sent: its Airflow connection is not set",
    }
    for address, end in (
        ("ftp://127.0.0.1/hook", "no http:// or https:// address"),
        ("nowhere", "its Airflow connection is not set"),
        ("http://", "not sent: "),
    ):
        chosen.alerts.webhook = address
        assert end in notify(about_month(month), chosen=chosen)["webhook"]
    assert "s3cret" not in log_path(chosen).read_text()


@pytest.mark.slow
def test_the_address_of_a_webhook_is_nowhere_to_be_read(month, chosen):
    program = (
        f"from housemlops.alert import *; print(notify(about_month({str(month)!r})))"
    )
    environ = os.environ | {
        "HOUSEMLOPS_PATHS_STATE": str(chosen.paths.state),
        "HOUSEMLOPS_ALERTS_WEBHOOK": "http://127.0.0.1:9/hook/s3cret",
    }
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environ,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (
        "it cannot be reached" in done.stdout
        and "s3cret" not in done.stdout + done.stderr
    )


def test_the_webhook_may_be_an_airflow_connection(month, chosen, webhook, monkeypatch):
    monkeypatch.setenv(
        "AIRFLOW_CONN_CHAT", json.dumps({"conn_type": "http", "host": webhook.address})
    )
    chosen.alerts.webhook = "chat"
    assert (
        notify(about_month(month), chosen=chosen)["webhook"] == "sent"
        and len(webhook.got) == 1
    )


def test_the_log_survives_a_kill_and_many_writers(chosen):
    line = {
        "kind": "month",
        "month": "2009-06",
        "text": "ä" * 5000,
        "channels": {"log": "sent"},
    }
    line["id"] = message_id(line)
    append_alert(log_path(chosen), line)
    with log_path(chosen).open("a") as file:
        file.write('{"id": "torn')
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: append_alert(log_path(chosen), line), range(40)))
    assert [found["id"] for found in read_alerts(chosen)] == [line["id"]] * 41


@pytest.mark.slow
def test_a_verdict_of_the_stage_can_be_told_in_a_process_of_its_own(
    month, chosen, webhook
):
    "As an Airflow task does: the settings come from the environment"
    program = (
        f"from housemlops.alert import *; print(notify(about_month({str(month)!r})))"
    )
    environ = os.environ | {
        "HOUSEMLOPS_PATHS_STATE": str(chosen.paths.state),
        "HOUSEMLOPS_ALERTS_WEBHOOK": webhook.address,
    }
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environ,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "'webhook': 'sent'" in done.stdout and len(webhook.got) == 1, done.stderr
    assert "s3cret" not in done.stdout + done.stderr
