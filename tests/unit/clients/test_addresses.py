import ipaddress

import pytest

from fc_operator.clients import addresses
from fc_operator.errors import InvalidError

PRIVATE = [
    "127.0.0.1", "127.1", "127.0.1", "0", "0.0.0.0", "2130706433", "0x7f000001", "0x7f.0.0.1",
    "0177.0.0.1", "017700000001", "10.0.0.1", "10.1", "172.16.0.1", "172.31.255.255", "192.168.1.1",
    "169.254.169.254", "0xa9fea9fe", "2852039166", "100.64.0.1", "192.0.0.1", "192.0.2.1",
    "198.18.0.1", "198.51.100.7", "203.0.113.7", "224.0.0.1", "240.0.0.1", "255.255.255.255",
    "[::]", "[::1]", "[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]",
    "[::ffff:10.0.0.1]", "[::ffff:169.254.169.254]", "[fe80::1]", "[fc00::1]", "[fd00::1]",
    "[ff02::1]", "[64:ff9b::7f00:1]", "[64:ff9b::a00:1]", "[2002:7f00:1::]", "[2002:a00:1::]",
    "[2001:0:4136:e378:8000:63bf:3fff:fdd2]", "[2001:db8::1]", "localhost", "LOCALHOST",
    "localhost.", "git.localhost", "Localhost.",
]  # fmt: skip
PUBLIC = ["8.8.8.8", "1.1.1.1", "[2606:4700:4700::1111]", "[::ffff:8.8.8.8]", "github.com"]


@pytest.mark.parametrize("text", PRIVATE)
def test_c02_ssrf_what_is_not_public_is_refused_in_every_spelling(text):
    host = addresses.canonical_host(text)
    with pytest.raises(InvalidError):
        addresses.check_host(host, 443, ())


@pytest.mark.parametrize("text", PUBLIC)
def test_public_hosts_pass(text):
    addresses.check_host(addresses.canonical_host(text), 443, ())


@pytest.mark.parametrize(
    "text", ["", ".", "a..b", "-a.example", "a-.example", "a b", "münchen.de", "a/b", "a@b", "a%2e"]
)
def test_what_is_no_host_is_refused(text):
    with pytest.raises(InvalidError):
        addresses.canonical_host(text)


@pytest.mark.parametrize(
    ("entry", "host", "port", "expected"),
    [
        ("127.0.0.1:8418", "127.0.0.1", 8418, True),
        ("127.0.0.1:8418", "127.0.0.1", 8419, False),
        ("127.0.0.1", "127.0.0.1", 8419, True),
        ("git.internal", "git.internal", 443, True),
        ("GIT.internal.", "git.internal", 443, True),
        ("git.internal", "evil.git.internal", 443, False),
        ("git.internal", "git.internal.evil.example", 443, False),
        ("[::1]:80", "::1", 80, True),
        ("::1", "::1", 80, True),
        ("[::1]:80", "::1", 81, False),
    ],
)
def test_the_list_means_exactly_what_it_says(entry, host, port, expected):
    assert addresses.is_listed(host, port, [entry]) is expected


async def test_c02_ssrf_a_listed_spelling_is_the_canonical_one():
    assert await addresses.resolve(addresses.canonical_host("127.1"), 80, ["127.0.0.1"]) == (
        "127.0.0.1",
    )


def test_every_address_of_a_private_network_is_private():
    for network in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7"):
        net = ipaddress.ip_network(network)
        for address in (net[0], net[1], net[-1], net[net.num_addresses // 2]):
            assert not addresses.is_public(address)
