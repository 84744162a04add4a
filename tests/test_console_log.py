"""What a command's log shows and what it leaves out."""

import logging

import pytest

from vicha_hf.console_log import log_to_console


@pytest.mark.parametrize("library", ["accelerate", "httpx", "httpx2"])
def test_libraries_are_heard_from_warnings_on(library, caplog):
    logger = logging.getLogger(library)
    # pytest sets it back afterwards.
    caplog.set_level(logging.INFO, library)
    logger.info("HTTP Request: GET before")
    log_to_console()
    logger.info("HTTP Request: GET after")
    logger.warning("it went wrong")
    assert caplog.messages == ["HTTP Request: GET before", "it went wrong"]
