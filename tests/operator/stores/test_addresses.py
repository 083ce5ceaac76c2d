"""Which addresses are not asked, in every form in which they can be written."""

from __future__ import annotations

import pytest

from modelchain_operator.stores.addresses import forms_of, is_loopback, is_refused


@pytest.mark.parametrize(
    "text",
    [
        "169.254.169.254",
        "169.254.170.2",
        "169.254.170.23",
        "100.100.100.200",
        "192.0.0.192",
        "168.63.129.16",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "0.1.2.3",
        "::ffff:240.0.0.1",
        "64:ff9b::f000:1",
        "fe80::1",
        "fe80::1%eth0",
        "fd00:ec2::254",
        "fd00:ec2::23",
        "fd00:ec2::253",
        "fd20:ce::254",
        "fec0::1",
        "ff02::1",
        "100::1",
        "4000::1",
        "::a9fe:a9fe",
        "::169.254.169.254",
        "::ffff:169.254.169.254",
        "::ffff:0:169.254.169.254",
        "::ffff:100.100.100.200",
        "64:ff9b::169.254.169.254",
        "64:ff9b:1::169.254.169.254",
        "64:ff9b:1:a9fe:a9:fe00::",
        "64:ff9b:1:12a9:fe:a9fe::",
        "64:ff9b:1:1234:a9:fea9:fe00:0",
        "64:ff9b:1:1234:5678:9abc:a9fe:a9fe",
        "2002:a9fe:a9fe::1",
        "2001:0:a9fe:a9fe::",
        "2001:0:1234:5678:0:0:5601:5601",
        "2001:db8::5efe:a9fe:a9fe",
        "2001:db8::200:5efe:169.254.169.254",
        "fd12::5efe:a9fe:a9fe",
    ],
)
def test_link_local_metadata_and_reserved_addresses_are_refused_in_every_form(text: str) -> None:
    assert is_refused(text)


@pytest.mark.parametrize(
    "text",
    [
        "127.0.0.1",
        "127.1.2.3",
        "0.0.0.0",  # noqa: S104
        "::",
        "::1",
        "::127.0.0.1",
        "::ffff:127.0.0.1",
        "::ffff:0:127.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b:1:7f00:0:100::",
        "2002:7f00:1::",
        "2001:db8::5efe:127.0.0.1",
    ],
)
def test_this_machine_is_known_in_every_form(text: str) -> None:
    assert is_loopback(text)


@pytest.mark.parametrize(
    "text",
    ["203.0.113.9", "10.0.0.1", "192.168.1.1", "100.64.0.1", "2001:db8::1", "2a00:1450:4001:831::200e", "fd12::9",
     "::ffff:10.0.0.1", "64:ff9b::203.0.113.9", "64:ff9b:1::10.0.0.1"],
)  # fmt: skip
def test_all_others_may_be_stores(text: str) -> None:
    assert not is_refused(text)
    assert not is_loopback(text)


def test_an_address_of_ipv4_has_one_form() -> None:
    assert [str(one) for one in forms_of("203.0.113.9")] == ["203.0.113.9"]
