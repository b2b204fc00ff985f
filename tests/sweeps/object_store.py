"""An S3-compatible store on this machine, addressed as users do, by environment."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from moto.server import ThreadedMotoServer
from pyarrow.fs import S3FileSystem


@contextmanager
def bucket_called(name: str) -> Iterator[S3FileSystem]:
    """A store with one empty bucket."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    endpoint = "{}:{}".format(*server.get_host_and_port())
    try:
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("AWS_ENDPOINT_URL", f"http://{endpoint}")
            environment.setenv("AWS_ACCESS_KEY_ID", "key")
            environment.setenv("AWS_SECRET_ACCESS_KEY", "secret")
            environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
            store = S3FileSystem(endpoint_override=endpoint, scheme="http", allow_bucket_creation=True)
            store.create_dir(name)
            yield store
    finally:
        server.stop()
