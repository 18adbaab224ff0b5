"""Addresses without their passwords: what may be printed and kept of a URL, and of messages that may repeat it."""

from urllib.parse import unquote, unquote_plus

MASK = "***"
SECRET = ("pass", "pwd", "secret", "token", "key", "auth", "credential", "connect")
"""Parts of the names of query values that are, or hold, secrets ("connect": an ODBC connection string)."""
SHORT = 4
"""A secret of fewer characters would be found in any message: that is left out whole."""


def masked(url: str) -> str:
    """A URL whose password and query values are asterisks; user, host and path stay.

    Everything is where it cannot be told what is the password: an @ after a question mark is one or the other's.
    """
    scheme, user, password, place, query = _parts(url)
    if not readable(url):
        return f"{scheme}{MASK}"
    login = user if password is None else f"{user}:{MASK}"
    values = "&".join(f"{name}={MASK}" for name, _ in _values(query))
    return f"{scheme}{login}{place}{'?' if query else ''}{values}"


def readable(url: str) -> bool:
    """Whether it is plain where user, password, host and query of a URL begin and end."""
    _, _, password, place, query = _parts(url)
    return "@" not in f"{password or ''}{place.removeprefix('@')}{query}" or place.startswith("/")


def secrets_of(url: str) -> list[str]:
    """The password and the secret query values of a URL as they may appear in a message, the longest first."""
    _, _, password, _, query = _parts(url)
    found = [password or ""] + [v for name, v in _values(query) if any(word in name.lower() for word in SECRET)]
    spellings = {spelling for text in found for spelling in (text, unquote(text), unquote_plus(text)) if spelling}
    return sorted(spellings, key=len, reverse=True)


def without_secrets(message: str, url: str) -> str:
    """A message that may repeat a URL, or its password alone, without it."""
    message = message.replace(url, masked(url))
    for secret in secrets_of(url):
        if secret in message and len(secret) < SHORT:
            return "its message is left out because it may hold the password"
        message = message.replace(secret, MASK)
    return message


def _values(query: str) -> list[tuple[str, str]]:
    parts = query.replace(";", "&").split("&") if query else []
    return [(name, value) for name, _, value in (part.partition("=") for part in parts)]


def _parts(url: str) -> tuple[str, str, str | None, str, str]:
    """ "x://ada:pw@host/db?k=v" -> ("x://", "ada", "pw", "@host/db", "k=v"); the password None where there is none."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        scheme, rest = "", url
    rest, _, query = rest.partition("?")
    if "@" not in rest or rest.startswith("/"):  # a path has no user
        return scheme + separator, "", None, rest, query
    head, _, host = rest.rpartition("@")
    user, colon, password = head.partition(":")
    return scheme + separator, user, password if colon else None, f"@{host}", query
