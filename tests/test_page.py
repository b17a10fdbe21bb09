"""The page of the generated server: a person types a house and sees its price; with a mouse, with keys alone, on a phone."""

import json
import re
from urllib.request import urlopen

import pytest

from housemlops.serving.running import running

pytestmark = [pytest.mark.slow, pytest.mark.browser]
FIELD = "#house input[data-type=number][required]"  # the first of them
BUTTON = "#house button.main"


@pytest.fixture(scope="module")
def address(sample):
    "A generated server, live."
    with running(sample.release) as url:
        yield url


@pytest.fixture
def visit(browser, address):
    "Open the page and wait for its first price; `wrong` gathers errors and requests to other hosts, `asked` the paths of all requests."
    opened = []

    def visit(width=1280, height=900, **context):
        page = browser.new_context(
            viewport={"width": width, "height": height}, **context
        ).new_page()
        page.wrong, page.asked = [], []
        page.on(
            "console",
            lambda message: (
                page.wrong.append(message.text)
                if message.type in ("error", "warning")
                else None
            ),
        )
        page.on("pageerror", lambda error: page.wrong.append(str(error)))
        page.on(
            "request",
            lambda request: (
                page.asked if request.url.startswith((address, "data:")) else page.wrong
            ).append(request.url.removeprefix(address)),
        )
        page.goto(f"{address}/")
        page.wait_for_selector("#chart svg")
        opened.append(page)
        return page

    yield visit
    for page in opened:
        page.context.close()


def amount(text):
    return float(re.sub(r"[^\d.-]", "", text.replace("−", "-")))


def message_of(field):
    return field.locator("xpath=..").locator(".wrong")


def shown(page):
    return amount(page.inner_text("#price"))


def priced(page, act):
    "Do something, and wait for the prediction that follows."
    with page.expect_response(
        lambda answer: answer.url.endswith("/predict")
    ) as waiting:
        act()
    assert waiting.value.status == 200
    found = waiting.value.json()
    page.wait_for_selector(f'#level a[href$="{found["id"]}"]')
    return found


def tab_to(page, selector, most=300):
    "Press Tab until an element has the focus; its outline must be visible."
    for _ in range(most):
        page.keyboard.press("Tab")
        if page.evaluate(
            "selector => document.activeElement.matches(selector)", selector
        ):
            return (
                page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
                != "none"
            )
    raise AssertionError(f"{most} times Tab do not lead to {selector}")


def test_a_house_is_typed_and_its_price_moves(visit, address):
    page = visit()
    before = shown(page)
    assert (
        before > 0 and "/predict" not in page.asked
    )  # looking at the example is not a prediction
    field = page.locator(FIELD).first
    found = priced(page, lambda: field.fill(str(float(field.input_value()) * 1.5)))
    assert shown(page) == round(found["price"]) != before
    assert amount(page.inner_text("#moved")) == pytest.approx(
        found["price"] - before, abs=1
    )
    again = priced(page, lambda: page.click(BUTTON))
    assert again["price"] == found["price"] and again["id"] != found["id"]
    with urlopen(f"{address}/predictions/{again['id']}") as answer:
        assert json.load(answer)["price"] == found["price"]
    page.click("#level a")
    page.wait_for_selector("dialog[open]")
    assert again["id"] in page.inner_text("dialog pre")
    assert not page.wrong


def test_a_pause_in_typing_is_one_prediction(visit):
    page = visit()
    field = page.locator(FIELD).first
    priced(
        page,
        lambda: [field.fill(str(float(field.input_value()) + 1)) for _ in range(5)],
    )
    page.wait_for_timeout(800)
    assert page.asked.count("/predict") == 1


def test_reasons_add_up_and_lead_to_the_curve(visit):
    page = visit()
    typical, *moves, total = [
        amount(text) for text in page.locator("#drivers .money").all_inner_texts()
    ]
    assert total == shown(page) and typical + sum(moves) == pytest.approx(
        total, abs=len(moves)
    )
    reason = page.locator("#drivers button").last
    reason.click()
    assert page.locator("#curve option:checked").inner_text() == reason.inner_text()
    page.click("#typical")
    page.locator("#against", has_text="typical house").wait_for()
    assert shown(page) == typical and "/predict" not in page.asked
    page.click("#example")
    page.locator("#drivers .money").nth(2).wait_for()
    assert shown(page) == total and not page.wrong


def test_every_field_has_a_curve(visit):
    page = visit()
    for name in page.locator("#curve option").evaluate_all(
        "options => options.map(option => option.value)"
    ):
        with page.expect_response("**/curve") as waiting:
            page.select_option("#curve", name)
        assert waiting.value.status == 200, name
        page.locator(f'#chart[data-along="{name}"]').wait_for()
        points, own = page.evaluate("[state.drawn.points.length, state.drawn.own]")
        blank = page.evaluate("name => byName.get(name).value === ''", name)
        assert points > 1 and (own >= 0 or blank), name
    assert not page.wrong


def test_keys_alone(visit):
    page = visit()
    before = shown(page)
    assert tab_to(page, FIELD)
    found = priced(
        page,
        lambda: (
            page.keyboard.press("Control+A"),
            page.keyboard.type("1234"),
            page.keyboard.press("Enter"),
        ),
    )
    assert shown(page) == round(found["price"]) != before
    closed = page.locator("details:not([open])").count()
    if closed:
        assert tab_to(page, "details:not([open]) > summary")
        page.keyboard.press("Enter")
        assert page.locator("details:not([open])").count() == closed - 1
    assert tab_to(page, "#chart")
    page.keyboard.press("Home")
    first = page.get_attribute("#chart", "aria-valuetext")
    page.keyboard.press("ArrowRight")
    second = page.get_attribute("#chart", "aria-valuetext")
    assert first != second and second.split(": ")[1].split(",")[0] in page.inner_text(
        "#read"
    )
    assert not page.wrong


def test_a_value_out_of_range_is_told_at_its_field(visit):
    page = visit()
    field = page.locator(FIELD).first
    good, limit = field.input_value(), float(field.get_attribute("max"))
    message = message_of(field)
    field.fill(str(limit + 1))
    message.filter(has_text=re.compile(r"\d")).wait_for()
    assert (
        field.get_attribute("aria-invalid") == "true"
        and "/predict" not in page.asked
        and not page.wrong
    )
    assert message.get_attribute("id") in field.get_attribute("aria-describedby")
    field.evaluate(
        "field => field.removeAttribute('max')"
    )  # now the server has to say it
    with page.expect_response("**/predict") as waiting:
        field.fill(str(limit + 2))
    assert waiting.value.status == 422
    told = waiting.value.json()["detail"][0]["msg"]
    message.filter(has_text=told).wait_for()
    priced(page, lambda: field.fill(good))
    assert message.inner_text() == "" and field.get_attribute("aria-invalid") is None


def test_a_field_that_is_needed(visit):
    page = visit()
    field = page.locator(FIELD).first
    field.fill("")
    page.click(BUTTON)
    assert message_of(field).inner_text()
    assert (
        field.evaluate("field => field === document.activeElement")
        and "/predict" not in page.asked
    )


def test_a_server_that_refuses_or_is_gone(visit):
    page = visit()
    page.route(
        "**/predict",
        lambda route: route.fulfill(status=503, json={"detail": "The log is down."}),
    )
    page.click(BUTTON)
    page.locator("#notice", has_text="The log is down.").wait_for()
    page.unroute("**/predict")
    priced(page, lambda: page.click("#notice button"))
    assert not page.is_visible("#notice")
    page.route("**/predict", lambda route: route.abort())
    page.click(BUTTON)
    page.locator("#notice", has_text="does not answer").wait_for()
    page.unroute("**/predict")
    page.route(
        "**/predict",
        lambda route: (
            route.fulfill(status=401, json={"detail": "no"})
            if route.request.headers.get("x-api-key") != "secret"
            else route.continue_()
        ),
    )
    page.click("#notice button")
    page.wait_for_selector("#key", state="visible")
    page.keyboard.type("secret")
    priced(page, lambda: page.keyboard.press("Enter"))
    assert not page.is_visible("#key")


def test_texts_of_the_server_stay_texts(visit):
    page = visit()
    spell = "<img src=x onerror=alert(1)>"
    page.route(
        "**/predict",
        lambda route: route.fulfill(
            json=route.fetch().json() | {"warnings": [spell], "model": spell}
        ),
    )
    page.click(BUTTON)
    page.wait_for_selector("#warnings li")
    assert (
        page.inner_text("#warnings li") == spell
        and page.locator("#warnings img").count() == 0
    )


def test_a_strict_policy_can_hold(visit, address):
    with urlopen(f"{address}/") as answer:
        html, policy = answer.read().decode(), answer.headers["Content-Security-Policy"]
    assert len(re.findall("<script", html)) == len(re.findall("<style", html)) == 1
    assert (
        not re.findall(r"<[^>]*\s(?:style|on\w+)=", html.split("<script>")[0])
        and "innerHTML" not in html
    )
    assert "default-src 'none'" in policy and len(html.encode()) < 64_000


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone(visit, scheme):
    page = visit(
        360,
        740,
        color_scheme=scheme,
        has_touch=True,
        is_mobile=True,
        reduced_motion="reduce",
    )
    page.evaluate(
        "for (const group of document.querySelectorAll('details')) group.open = true"
    )
    for name in page.locator("#curve option").evaluate_all(
        "options => options.map(option => option.value)"
    )[::9]:
        with page.expect_response("**/curve"):
            page.select_option("#curve", name)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    field = page.locator(FIELD).first
    found = priced(page, lambda: field.fill(str(float(field.input_value()) * 1.2)))
    assert (
        amount(page.inner_text("#mini strong")) == round(found["price"]) == shown(page)
    )
    assert (
        page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        and not page.wrong
    )
