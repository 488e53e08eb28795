"""The peer suite: the same numbers as torch, PEFT, transformers and bitsandbytes. Not part of the default run."""

import pytest


def pytest_collection_modifyitems(config, items):
    try:
        import torch

        torch.set_num_threads(1)  # bitsandbytes' sums depend on the number of threads
    except ImportError:
        for item in items:
            item.add_marker(pytest.mark.skip(reason="not run: torch is not installed (see CONTRIBUTING.md)"))
