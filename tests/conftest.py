"""Fixtures of every test package."""

import pytest
import torch


@pytest.fixture(scope="module")
def one_thread():
    """Small networks run faster without a second thread: `pytestmark = pytest.mark.usefixtures("one_thread")`."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
