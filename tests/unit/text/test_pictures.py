from __future__ import annotations

import base64
from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from moyin.errors import AddressNotAllowed, InvalidRequest, UnsupportedFeature
from moyin.http.public_addresses import AllowedNetworks
from moyin.text.pictures import PictureFetcher

PNG = b"\x89PNG\r\n\x1a\n" + b"0" * 40


@pytest.fixture
async def host() -> AsyncIterator[str]:
    async def serve_file(request: web.Request) -> web.StreamResponse:
        name = request.match_info["place"]
        if name == "a.png":
            return web.Response(body=PNG, content_type="text/plain")
        if name == "page":
            return web.Response(text="<html>", content_type="image/png")
        if name == "large":
            return web.Response(body=PNG + b"0" * (10 * 1024 * 1024))
        if name == "round":
            raise web.HTTPFound("/round")
        if name == "there":
            raise web.HTTPFound("/a.png")
        if name == "inside":
            raise web.HTTPFound("http://10.0.0.1/a.png")
        if name == "nobody":
            raise web.HTTPFound("http://a..b/a.png")
        raise web.HTTPNotFound

    app = web.Application()
    app.router.add_get("/{place}", serve_file)
    async with TestServer(app) as server:
        yield str(server.make_url("/"))


@pytest.fixture
async def pictures() -> AsyncIterator[PictureFetcher]:
    pictures = PictureFetcher(AllowedNetworks("127.0.0.0/8"))
    yield pictures
    await pictures.close()


async def test_a_pictures_type_is_detected_by_its_content(
    host: str, pictures: PictureFetcher
) -> None:
    urls = [f"{host}a.png", f"{host}there", f"{host}a.png"]
    images = await pictures.fetch(urls)
    assert set(images) == set(urls)
    image = images[f"{host}there"]
    assert (image.media_type, image.url) == ("image/png", None)
    assert base64.b64decode(image.data or "") == PNG


@pytest.mark.parametrize(
    ("file_name", "reason"),
    [
        ("page", "must be a PNG"),
        ("nothing", "responded 404"),
        ("large", "too large"),
        ("round", "redirects more than 3 times"),
    ],
)
async def test_urls_without_a_usable_picture_are_rejected(
    host: str, pictures: PictureFetcher, file_name: str, reason: str
) -> None:
    with pytest.raises(InvalidRequest, match=reason) as exc_info:
        await pictures.fetch([f"{host}{file_name}"])
    assert exc_info.value.field == "messages"


@pytest.mark.parametrize(
    "url",
    [
        "http://10.0.0.1/a.png",
        "http://169.254.169.254/latest/meta-data",
        "http://[::1]/a.png",
        "http://[::ffff:192.168.0.1]/a.png",
        "http://0x0a000001/a.png",
        "http://\uff11\uff10.0.0.1/a.png",
        "http://①⑥⑨.②⑤④.①⑥⑨.②⑤④/latest/meta-data",
    ],
)
async def test_pictures_in_private_networks_are_refused(pictures: PictureFetcher, url: str) -> None:
    with pytest.raises((AddressNotAllowed, InvalidRequest)) as exc_info:
        await pictures.fetch([url])
    assert exc_info.value.field == "messages"


async def test_redirect_to_a_private_network_is_refused(
    host: str, pictures: PictureFetcher
) -> None:
    with pytest.raises(AddressNotAllowed):
        await pictures.fetch([f"{host}inside"])


@pytest.mark.parametrize(
    "spelled_host", ["\uff11\uff12\uff17.\uff10.\uff10.\uff11", "①②⑦.0.0.1", "127。0。0。1"]
)
async def test_loopback_is_private_however_it_is_spelled(host: str, spelled_host: str) -> None:
    pictures = PictureFetcher(AllowedNetworks())
    with pytest.raises(AddressNotAllowed, match="picture"):
        await pictures.fetch([f"{host}a.png".replace("127.0.0.1", spelled_host)])
    await pictures.close()


@pytest.mark.parametrize("url", ["http://a..b/a.png", f"http://{'a' * 64}.example/a.png"])
async def test_impossible_host_name_is_an_invalid_request(
    host: str, pictures: PictureFetcher, url: str
) -> None:
    for picture_url in (url, f"{host}nobody"):
        with pytest.raises(InvalidRequest, match="absolute") as exc_info:
            await pictures.fetch([picture_url])
        assert exc_info.value.field == "messages"


async def test_loopback_is_private_unless_an_operator_allows_it(host: str) -> None:
    pictures = PictureFetcher(AllowedNetworks())
    with pytest.raises(AddressNotAllowed, match="picture"):
        await pictures.fetch([f"{host}a.png"])
    named_host = host.replace("127.0.0.1", "localhost")
    with pytest.raises(AddressNotAllowed, match="picture"):
        await pictures.fetch([f"{named_host}a.png"])
    await pictures.close()


@pytest.mark.parametrize("url", ["ftp://e.org/a", "file:///etc/passwd", "//e.org/a", "a.png", ""])
async def test_only_absolute_urls_are_followed(pictures: PictureFetcher, url: str) -> None:
    with pytest.raises(InvalidRequest, match="absolute"):
        await pictures.fetch([url])


async def test_number_of_pictures_per_request_is_limited(pictures: PictureFetcher) -> None:
    with pytest.raises(UnsupportedFeature, match="20"):
        await pictures.fetch(f"http://e.org/{number}" for number in range(21))
