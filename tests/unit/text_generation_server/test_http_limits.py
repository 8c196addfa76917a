"""Limits are above 0, each of them."""

import pytest

from kilotron.errors import ConfigError
from kilotron.text_generation_server.http_limits import HttpLimits


@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_a_limit_that_is_not_above_0_is_refused_by_name(value: float) -> None:
    with pytest.raises(ConfigError, match="body_timeout_s must be above 0"):
        HttpLimits(body_timeout_s=value)
