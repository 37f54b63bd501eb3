"""Which calls to a Flower process are tried again, in Flower's own retrier."""

import httpx
import pytest
from flwr.supercore.retry import make_simple_http_retry_invoker

from iedn.retries import LONGEST_PAUSE_S, pauses, retry_calmly


class Service:
    """Raises one error after the other, then answers."""

    def __init__(self, *errors):
        self.errors, self.calls = list(errors), 0

    def __call__(self):
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "answer"


def status(code):
    request = httpx.Request("POST", "http://127.0.0.1/")
    return httpx.HTTPStatusError("", request=request, response=httpx.Response(code))


def retrier(is_over=lambda: False):
    made = make_simple_http_retry_invoker()
    retry_calmly(made, is_over)
    made.wait_function = lambda seconds: None
    return made


@pytest.mark.parametrize(
    "error",
    [
        httpx.ConnectError(""),
        httpx.ReadTimeout(""),
        httpx.RemoteProtocolError(""),
        *map(status, (502, 503, 504)),
    ],
)
def test_who_is_away_is_asked_until_there(error):
    service = Service(*[error] * 40)
    assert retrier().invoke(service) == "answer"
    assert service.calls == 41


@pytest.mark.parametrize("code", [400, 401, 403, 404, 500])
def test_refusal_is_raised_at_once_and_interrupts_nothing(code):
    service = Service(status(code))
    with pytest.raises(httpx.HTTPStatusError):
        retrier().invoke(service)
    assert service.calls == 1


def test_nobody_is_asked_again_once_it_is_over():
    service = Service(*[httpx.ConnectError("")] * 3)
    with pytest.raises(httpx.ConnectError):
        retrier(lambda: service.calls == 2).invoke(service)
    assert service.calls == 2


def test_pauses_double_up_to_the_longest():
    generator = pauses()
    assert [next(generator) for _ in range(5)] == [0.5, 1.0, 2.0, LONGEST_PAUSE_S, LONGEST_PAUSE_S]
