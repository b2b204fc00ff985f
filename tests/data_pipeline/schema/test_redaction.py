"""Secrets of URLs and their masks. `CANARY` is in every secret, and no result may hold it."""

import pickle
from urllib.parse import quote

import pytest

from data_pipeline.schema.redaction import has_user_information, redact, redact_url
from data_pipeline.schema.rejects import Reason, Reject
from data_pipeline.schema.user_errors import InputFault, first_line


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://someone:CANARY@host/repo.git", "https://***@host/repo.git"),
        ("https://CANARY@github.com/owner/repo", "https://***@github.com/owner/repo"),
        ("s3://KEY:CANARY@bucket/rows.jsonl", "s3://***@bucket/rows.jsonl"),
        ("s3://KEY:CAN/ARY+CANARY@bucket/rows.jsonl", "s3://***@bucket/rows.jsonl"),
        ("s3://KEY:12/CANARY@bucket", "s3://***@bucket"),
        ("postgresql://user:C@CANARY@host:5432/db", "postgresql://***@host:5432/db"),
        ("postgresql+psycopg2://user:CANARY/C@NARY@host/db", "postgresql+psycopg2://***@host/db"),
        ("https://user:12a/CANARY@host/x", "https://***@host/x"),
        ("sftp://user:CANARY@host/x", "sftp://***@host/x"),
        ("simplecache::https://user:CANARY@host/x", "simplecache::https://***@host/x"),
        ("git+https://user:CANARY@host/x", "git+https://***@host/x"),
    ],
)
def test_user_information_is_masked_also_with_slashes_and_at_signs_in_a_password(url: str, shown: str) -> None:
    assert redact(url) == redact_url(url) == shown
    assert has_user_information(url)
    assert redact(f"cannot open '{url}', see {url}") == f"cannot open '{shown}', see {shown}"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (
            "https://host/x?X-Amz-Date=20260101&X-Amz-Credential=CANARY%2Fus&X-Amz-Signature=CANARY&part=2",
            "https://host/x?X-Amz-Date=***&X-Amz-Credential=***&X-Amz-Signature=***&part=2",
        ),
        ("https://host/x?file=a.csv&token=CANARY", "https://host/x?file=a.csv&token=***"),
        (
            "https://acc.blob/x?sv=2024&se=2026-01-01&sr=b&sig=CANARY%2B",
            "https://acc.blob/x?sv=***&se=***&sr=***&sig=***",
        ),
        ("https://host/x?Expires=1&Signature=CANARY", "https://host/x?Expires=***&Signature=***"),
        ("https://host/x?AWSAccessKeyId=CANARY", "https://host/x?AWSAccessKeyId=***"),
        ("https://host/x#access_token=CANARY", "https://host/x#access_token=***"),
        ("https://host/x?url=https%3A%2F%2Fu%3ACANARY%40h%2Fy", "https://host/x?url=***"),
        ("https://host/x?next=%2Fy%3Fapi_key%3DCANARY", "https://host/x?next=***"),
        ("postgresql://host/db?user=me&password=CANARY", "postgresql://host/db?user=me&password=***"),
    ],
)
def test_secrets_of_a_query_are_masked_and_its_other_values_stay(url: str, shown: str) -> None:
    assert redact(url) == redact_url(url) == shown
    assert not has_user_information(url)
    assert redact(f"(see '{url}')") == f"(see '{shown}')"


@pytest.mark.parametrize(
    "text",
    [
        "https://host:8080/@scope/package@1.2?version=3",
        "http://[::1]:5000/x@1",
        "s3://bucket/a@b.jsonl?region=eu-1&endpoint_override=localhost:9000",
        "abfs://container@account.dfs.core.windows.net/rows.parquet",
        "ssh://git@github.com/owner/repo",
        "hdfs://someone@namenode:8020/rows",
        "git@github.com:owner/repo.git",
        "models:/my-sweep@champion",
        "zip://rows.csv::https://host/rows@2.zip",
        "sqlite:////results@home/a:b/mlflow.db",
        "file:///data/rows@2.csv",
        "https://host/x?file=a.jsonl&author=b&tokenizer=c&design=d&expires=1",
        "/data/part?key=a/*.jsonl",
        "is it so? a=b, see user@host: yes",
    ],
)
def test_addresses_without_a_secret_stay_as_they_are(text: str) -> None:
    assert redact_url(text) == text
    assert redact(text) == text or "://" not in text
    assert not has_user_information(text)


def test_a_library_that_quotes_the_path_of_a_request_alone_gives_no_secret_away() -> None:
    text = "HTTPSConnectionPool(host='h', port=443): Max retries exceeded with url: /x?token=CANARY (Caused by ...)"
    assert redact(text) == text.replace("CANARY", "***")


def test_masked_text_is_masked_again_to_the_same() -> None:
    text = f"https://a:CANARY@b/c?token=CANARY https://d?u={quote('https://a:CANARY@b')}"
    assert redact(redact(text)) == redact(text)
    assert "CANARY" not in redact(text)


def test_a_url_signed_again_is_shown_as_before() -> None:
    first, again = (f"https://h/x?X-Amz-Date={day}&X-Amz-Signature={day}abc" for day in ("20260101", "20260202"))
    assert redact_url(first) == redact_url(again)


def test_a_text_of_marks_alone_ends_in_time() -> None:
    # A pattern that began again at every mark would take hours.
    for mark in ("?", "://", "a:/", "@", "?a="):
        redact(mark * 200_000)
    redact("a://" + "b:" * 200_000)


def test_every_fault_of_an_input_masks_the_urls_that_it_quotes() -> None:
    fault = InputFault("s3://KEY:CANARY@bucket and https://h/x?sig=CANARY cannot be read")
    assert str(fault) == "s3://***@bucket and https://h/x?sig=*** cannot be read"
    assert str(pickle.loads(pickle.dumps(fault))) == str(fault)
    assert first_line(OSError("no answer from https://me:CANARY@h\nmore")) == "no answer from https://***@h"


def test_a_reject_names_its_file_without_the_signature() -> None:
    assert Reject("https://h/x?sig=CANARY", 3, Reason.EMPTY_TEXT, "").file == "https://h/x?sig=***"
