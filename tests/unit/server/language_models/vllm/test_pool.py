from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from server.language_models.vllm.pool import Pool, Server


def pool_of(count: int, limit: int = 100) -> Pool:
    return Pool(Server(f"http://host-{index}:8000", limit) for index in range(count))


def open_breaker(server: Server) -> None:
    for _ in range(5):
        server.breaker.record_failure(0)


def test_the_server_with_fewest_requests_gets_the_next_and_ties_go_round() -> None:
    pool = pool_of(3)
    picks = [pool.pick(0) for _ in range(6)]
    assert picks == list(pool.servers) * 2
    pool.release(pool.servers[1])
    assert pool.pick(0) is pool.servers[1]


def test_idle_servers_share_requests_that_come_one_at_a_time() -> None:
    pool, counts = pool_of(3), Counter[str]()
    for _ in range(9):
        server = pool.pick(0)
        assert server is not None
        counts[server.url] += 1
        pool.release(server)
    assert set(counts.values()) == {3}


def test_full_servers_get_nothing() -> None:
    pool = pool_of(2, limit=1)
    first, second = pool.pick(0), pool.pick(0)
    assert {first, second} == set(pool.servers)
    assert pool.pick(0) is None
    assert pool.candidates(0)


def test_unhealthy_servers_get_nothing() -> None:
    pool = pool_of(2)
    pool.servers[0].record_health(False)
    assert [pool.pick(0) for _ in range(3)] == [pool.servers[1]] * 3
    pool.servers[1].record_health(False)
    assert not pool.healthy
    assert pool.candidates(0) == []
    pool.servers[0].record_health(True)
    assert pool.pick(0) is pool.servers[0]


def test_late_checks_count_from_the_second_in_a_row() -> None:
    server = Server("http://host", 1)
    for misses in range(2):
        server.record_health(False, misses_allowed=1)
        assert server.healthy is (misses == 0)
    server.record_health(True)
    server.record_health(False, misses_allowed=1)
    assert server.healthy


def test_an_open_breaker_sends_requests_elsewhere_but_never_takes_away_the_last_server() -> None:
    pool = pool_of(2)
    open_breaker(pool.servers[0])
    assert [pool.pick(0.5) for _ in range(3)] == [pool.servers[1]] * 3
    open_breaker(pool.servers[1])
    assert pool.pick(0.5) is pool.servers[0]  # it has fewer
    pool.servers[0].record_health(False)
    assert pool.pick(0.5) is pool.servers[1]


def test_a_full_server_is_waited_for_rather_than_one_whose_breaker_is_open() -> None:
    pool = pool_of(2, limit=1)
    open_breaker(pool.servers[0])
    assert pool.pick(0.5) is pool.servers[1]
    assert pool.pick(0.5) is None


def test_a_half_open_breaker_gets_one_request() -> None:
    pool = pool_of(2)
    open_breaker(pool.servers[0])
    assert [pool.pick(1.0) for _ in range(3)] == [pool.servers[0], pool.servers[1], pool.servers[1]]


def test_avoided_servers_are_the_last_choice_and_excluded_ones_none() -> None:
    pool = pool_of(2)
    first, second = pool.servers
    assert pool.pick(0, avoid={first}) is second
    assert pool.pick(0, avoid={first}, exclude={second}) is first
    assert pool.pick(0, exclude={first, second}) is None
    second.record_health(False)
    assert pool.pick(0, avoid={first}) is first


def test_names_are_host_and_port_without_secrets() -> None:
    assert Server("http://user:secret@host:8001/prefix", 1).name == "host:8001"
    assert Server("http://[::1]:8001", 1).name == "[::1]:8001"


actions = st.lists(
    st.tuples(st.sampled_from(["pick", "release", "check", "fail", "succeed"]), st.integers(0, 3), st.booleans()),
    max_size=80,
)


@given(actions, st.integers(1, 4), st.integers(1, 3))
def test_laws_of_picking(history: list[tuple[str, int, bool]], count: int, limit: int) -> None:
    """No server above its limit, none that is unhealthy; a pick is never refused while there is room at a candidate."""
    pool = pool_of(count, limit)
    held: list[Server] = []
    for now, (action, index, good) in enumerate(history):
        server = pool.servers[index % count]
        if action == "pick":
            before = {candidate: candidate.in_flight for candidate in pool.candidates(now)}
            picked = pool.pick(now)
            if picked is None:
                assert all(load >= limit for load in before.values())
            else:
                assert picked.healthy
                assert before[picked] == min(before.values())
                held.append(picked)
        elif action == "release" and held:
            pool.release(held.pop(index % len(held)))
        elif action == "check":
            server.record_health(good)
        elif action == "fail":
            server.breaker.record_failure(now)
        else:
            server.breaker.record_success(now)
        assert all(0 <= other.in_flight <= limit for other in pool.servers)
        assert sum(other.in_flight for other in pool.servers) == len(held)
        assert bool(pool.candidates(now)) is pool.healthy
