"""Console log of a command: what this package tells, without what its libraries say to themselves."""

import logging


# Clients of the Hub tell each of their requests.
_TALKATIVE = ("accelerate", "httpx", "httpx2")


def log_to_console() -> None:
    """Shows messages from INFO on, each with its time and origin; those of talkative libraries from WARNING on."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)


def hide_progress_bars() -> None:
    """Hides the bars of the libraries, which a command's own switch does not reach."""
    import datasets
    from huggingface_hub.utils import disable_progress_bars
    from transformers.utils.logging import disable_progress_bar

    datasets.disable_progress_bars()
    disable_progress_bars()
    disable_progress_bar()
