"""Which URLs and addresses images may be fetched from."""

import pytest

from server.images.addresses import is_public
from server.images.remote_urls import UrlPolicy, UrlRefusedError

ANY = UrlPolicy(["*"], ["https", "http"], [443, 80])


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://example.com", "https://example.com:443/"),
        ("HTTP://Images.Example.COM:80/a/b.png?size=1&x=%2F#part", "http://images.example.com:80/a/b.png?size=1&x=%2F"),
        ("https://xn--bcher-kva.example/x", "https://xn--bcher-kva.example:443/x"),
        ("https://example.com?q", "https://example.com:443/?q"),
    ],
)
def test_urls_that_are_taken_apart(url: str, expected: str) -> None:
    assert str(ANY.check(url)) == expected


REFUSED = [
    # addresses in every notation that some resolver reads
    "http://127.0.0.1/", "http://127.1/", "http://2130706433/", "http://0x7f000001/", "http://0x7f.0.0.1/",
    "http://0x7f.0x0.0x0.0x1/", "http://0177.0.0.1/", "http://017700000001/", "http://127.0.0.1./", "http://8.8.8.8/",
    "http://[::1]/", "http://[::ffff:127.0.0.1]/", "http://[fe80::1%25eth0]/", "http://0/", "http://1.1.1.0x1/",
    "http://127.0.0.1.example.123/",
    # names that are not on the public internet
    "http://localhost/", "http://localhost./", "http://vllm:8001/", "http://metadata/", "http://a.b.com./",
    # user information, and what some parsers take for the host
    "https://user@example.com/", "https://user:secret@example.com/", "https://example.com@127.0.0.1/",
    "https://127.0.0.1@example.com/", "https://example.com:80@127.0.0.1/", "https://example.com\\@127.0.0.1/",
    "https://example.com#@127.0.0.1/".replace("#", "%23"), "https://@example.com/", "https://example.com:@b.com/",
    # other schemes
    "file:///etc/passwd", "ftp://example.com/x", "gopher://example.com/", "dict://example.com:443/", "//example.com/x",
    "javascript:alert(1)", "unix:///run/x.sock", "example.com/x", "https:example.com", "https:///example.com/", "", "x",
    "data2:image/png", "http+unix://x/", "jar:http://example.com!/", "blob:https://example.com/x",
    # letters that are folded to dots, slashes, digits or nothing
    "http://127。0。0。1/", "http://127．0．0．1/", "http://①②⑦.⓪.⓪.①/", "http://ｅxample.com/", "http://exa\u00admple.com/",
    "http://example。com/", "http://example.com\uff0f@x/", "http://exämple.com/",
    # white space and control characters
    " https://example.com/", "https://example.com/ x", "https://exam\nple.com/", "https://example.com/\r\nX: y",
    "https://example.com/\t", "https://example.com/\0", "https://exa mple.com/", "\x01https://example.com/",
    # other ports
    "https://example.com:22/", "https://example.com:0/", "https://example.com:65536/", "https://example.com:-1/",
    "https://example.com:443443/", "https://example.com:4 43/", "https://example.com:x/", "https://example.com:8001/",
    # what is no name
    "https://.com/", "https://a..com/", "https://-a.com/", "https://a-.com/", "https://a_b.com/", "https://*.com/",
    "https://[example.com]/", "https://[::1/", "https://" + "a" * 64 + ".com/", "https://" + "a." * 130 + "com/",
    "https://example.com/" + "a" * 5000, "https://exa%6dple.com/", "https://example.com%00.b.com/", "https://a.b.c0m-/",
]  # fmt: skip


@pytest.mark.parametrize("url", REFUSED)
def test_urls_that_are_refused(url: str) -> None:
    with pytest.raises(UrlRefusedError) as caught:
        ANY.check(url)
    assert len(str(caught.value)) > 10
    assert not any(word in str(caught.value) for word in ("secret", "passwd", "vllm"))


def test_allow_lists() -> None:
    policy = UrlPolicy(["images.example.com", "*.cdn.example.net"], ["https"], [443])
    for host in ("images.example.com", "IMAGES.example.com", "a.cdn.example.net", "a.b.cdn.example.net"):
        policy.check(f"https://{host}/x")
    for host in (
        "example.com",
        "x.images.example.com",
        "cdn.example.net",
        "evilcdn.example.net",
        "images.example.com.b.io",
    ):
        with pytest.raises(UrlRefusedError, match="operator"):
            policy.check(f"https://{host}/x")
    with pytest.raises(UrlRefusedError, match="scheme must be https"):
        policy.check("http://images.example.com/x")
    with pytest.raises(UrlRefusedError, match="port must be one of 443"):
        policy.check("https://images.example.com:8443/x")


def test_redirects_are_checked_like_the_first_url() -> None:
    policy = UrlPolicy(["a.example.com", "b.example.com"], ["https", "http"], [443, 80])
    source = policy.check("https://a.example.com/x/y")
    assert str(policy.redirect(source, "../z?q=1")) == "https://a.example.com:443/z?q=1"
    assert str(policy.redirect(source, "//b.example.com/z")) == "https://b.example.com:443/z"
    for location in ("http://a.example.com/x", "https://c.example.com/", "//c.example.com", "https://u@b.example.com/",
                     "http://127.0.0.1/", "file:///etc/passwd", "https://b.example.com:22/", "\\\\c.example.com/",
                     "http://[", "https://b.example.com\xe9/"):  # fmt: skip
        with pytest.raises(UrlRefusedError):
            policy.redirect(source, location)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "93.184.215.14", "223.255.255.1", "2606:4700:4700::1111", "2a00:1450::1"]
)
def test_public_addresses(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.255.255.254", "0.0.0.0", "0.1.2.3", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1",
        "169.254.169.254", "169.254.0.1", "100.64.0.1", "100.100.100.200", "100.127.255.255", "168.63.129.16",
        "192.0.0.192", "192.0.2.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "192.88.99.1", "224.0.0.1",
        "239.255.255.250", "240.0.0.1", "255.255.255.255",
        "::", "::1", "::7f00:1", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "::ffff:a9fe:a9fe", "::ffff:0:127.0.0.1",
        "64:ff9b::7f00:1", "64:ff9b::808:808", "64:ff9b:1::7f00:1", "2002:7f00:1::", "2002:808:808::1",
        "2001:0:7f00:1::", "2001:10::1", "2001:db8::1", "3fff::1", "100::1", "fc00::1", "fd00:ec2::254", "fe80::1",
        "fe80::1%eth0", "2606:4700::1%eth0", "fec0::1", "ff02::1", "ff0e::1", "5f00::1", "4000::1",
        "2606:4700::5efe:7f00:1", "2606:4700::200:5efe:7f00:1",
        "", "localhost", "example.com", "127.1", "0x7f.1", "2130706433", "1.2.3.4/24", "[::1]",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)
