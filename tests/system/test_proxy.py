"""A site whose only way out is its hospital's proxy, which restarts and then opens TLS.

The coordinator's name is known to the proxy alone: what arrives has gone through it. All three
proxy variables are set, as hospitals set them; the site's own loopback ports must not be asked
of the proxy, which would refuse them.
"""

import pytest

from tests.deployment import TIMEOUT_S, commits, deployment, scenario, wait_until
from tests.system.connect_proxy import ConnectProxy, Interception

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.xdist_group("proxy")]

HOST, SITE = "coordinator.test", "site-a"
PATIENCE_S = 3 * TIMEOUT_S


def one_site():
    content = scenario(rounds=3, trainers=(SITE,))
    return content | {"sites": {SITE: content["sites"][SITE]}}


def committed(deployed, number):
    wait_until(
        lambda: any(c["round"] == number for c in commits(deployed.run)),
        PATIENCE_S,
        f"round {number} is committed\n{deployed.log('server')[-2000:]}",
    )


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """One run: a proxy, the proxy restarted, a proxy that opens TLS, the same once trusted."""
    folder = tmp_path_factory.mktemp("proxy")
    with deployment(folder, one_site(), host=HOST) as deployed:
        ca = deployed.kit(SITE) / "tls" / "ca.crt"
        inside = Interception.prepare(folder, HOST, ca)
        first = ConnectProxy(HOST, deployed.port)
        first.start()
        address = f"http://127.0.0.1:{first.port}"
        names = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY")
        proxies = {n: address for name in names for n in (name, name.lower())}
        proxies |= {"NO_PROXY": "", "no_proxy": ""}
        deployed.start_server()
        deployed.start_site(SITE, **proxies)
        committed(deployed, 1)
        first.close()
        second = ConnectProxy(HOST, deployed.port)
        second.start(first.port)
        committed(deployed, 2)
        second.close()
        third = ConnectProxy(HOST, deployed.port, inside)
        third.start(first.port)
        wait_until(lambda: "no connection to" in deployed.log(SITE), PATIENCE_S, "distrust")
        read_before = third.saw_calls
        deployed.stop(SITE)
        ca.write_bytes(ca.read_bytes() + inside.root.read_bytes())
        deployed.start_site(SITE, **proxies)
        code = deployed.wait_for_end(timeout_s=PATIENCE_S)
        third.close()
        yield deployed, (first, second, third), read_before, code


def test_site_joins_trains_and_reconnects_through_the_proxy(told):
    deployed, _, _, code = told
    assert code == 0, deployed.log("server")
    assert deployed.model_hash() == deployed.reference_hash()
    assert deployed.log(SITE).count("mean loss") == 3, "nothing was trained twice"


def test_every_connection_went_through_the_proxy_and_none_to_this_machine(told):
    deployed, proxies, _, _ = told
    assert [p.requests for p in proxies] == [{f"CONNECT {HOST}:{deployed.port}"}] * 3
    assert all(p.up.passed > 0 for p in proxies)


def test_proxy_without_the_hospitals_root_in_ca_reads_nothing(told):
    _, (first, second, _), read_before, _ = told
    assert [first.saw_calls, second.saw_calls, read_before] == [False] * 3


def test_proxy_whose_root_is_in_ca_reads_what_passes(told):
    assert told[1][2].saw_calls
