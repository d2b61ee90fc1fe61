"""The control: one draw per step, the same for the same request."""

from reasonrt.routers.published import RandomRouter
from reasonrt.transcript import Transcript
from reasonrt.types import Message, Request, Step


async def test_random_router_draws_once_per_step() -> None:
    request, step = Request.ask("?"), Step("a\n\n", (1, 2), "draft")
    transcript = Transcript((Message("user", "?"),))
    router, again = RandomRouter(request), RandomRouter(request)

    first = [await router.advantage(transcript, step) for _ in range(3)]
    transcript.commit(step)
    second = await router.advantage(transcript, step)

    assert len(set(first)) == 1
    assert second != first[0]
    assert second == await again.advantage(transcript, step)
