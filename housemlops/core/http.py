"""Ask the servers of this machine."""

import json
import urllib.error
import urllib.request
from typing import Any


def request_json(
    url: str, body: Any = None, token: str = "", timeout: float = 10.0
) -> tuple[int, Any]:
    """Send a GET, or a POST of JSON, past any proxy.

    Args:
        url: Address.
        body: Sent as JSON; a GET when it is None.
        token: Sent as a bearer token.
        timeout: Seconds.

    Returns:
        The status and the decoded JSON of the answer, also of one that reports an error.

    Raises:
        OSError: When there is no answer.
        ValueError: When the answer is not JSON.
    """
    headers = {"Content-Type": "application/json"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=timeout) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)
