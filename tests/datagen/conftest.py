"""Fixtures of datagen's tests: a store at a URL."""

import pytest


@pytest.fixture(scope="module")
def server():
    """A real S3 server for a file's tests, soon asked again where it fails."""
    from helpers.s3_server import s3_server

    from stylepairs.datagen.shell.storage import transfer

    with pytest.MonkeyPatch.context() as patch, s3_server(patch) as s3:
        patch.setattr(transfer, "_WAIT_S", 0.01)
        yield s3


@pytest.fixture
def s3(server):
    """The server, empty and without faults."""
    server.clear()
    return server
