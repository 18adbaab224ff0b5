"""Removal of passwords and other secrets from URLs, and from messages that may quote them."""

from urllib.parse import unquote, unquote_plus

MASK = "***"
SECRET = ("pass", "pwd", "secret", "token", "key", "auth", "credential", "connect")
"""Parts of the names of query parameters whose values are secrets or contain them ("connect": an ODBC string)."""
SHORT = 4
"""Replacing a secret shorter than this would garble a message by chance matches, so the message is omitted."""


def masked(url: str) -> str:
    """Return a URL with asterisks for its password and query values; user, host and path are kept.

    An ambiguous URL is masked up to its scheme: an @ after a question mark may be part of the password or of the query.
    """
    scheme, user, password, place, query = _parts(url)
    if not readable(url):
        return f"{scheme}{MASK}"
    login = user if password is None else f"{user}:{MASK}"
    values = "&".join(f"{name}={MASK}" for name, _ in _values(query))
    mark = "?" if query else ""
    return f"{scheme}{login}{place}{mark}{values}"


def readable(url: str) -> bool:
    """Return whether a URL has one reading only, that is, where user, password, host and query begin and end."""
    _, _, password, place, query = _parts(url)
    rest = f"{password or ''}{place.removeprefix('@')}{query}"
    return "@" not in rest or place.startswith("/")


def secrets_of(url: str) -> list[str]:
    """Return the password and the secret query values of a URL, quoted and unquoted, the longest first."""
    _, _, password, _, query = _parts(url)
    found = [password or ""]
    for name, value in _values(query):
        if any(word in name.lower() for word in SECRET):
            found.append(value)
    spellings: set[str] = set()
    for text in found:
        spellings |= {text, unquote(text), unquote_plus(text)}
    # The longest first: replacing a secret that is part of a longer one would leave the rest of that one readable.
    return sorted(spellings - {""}, key=len, reverse=True)


def without_secrets(message: str, url: str) -> str:
    """Return a message with asterisks for the secrets of a URL that it may quote in whole or in part."""
    message = message.replace(url, masked(url))
    for secret in secrets_of(url):
        if secret in message and len(secret) < SHORT:
            return "its message is omitted because it may contain the password"
        message = message.replace(secret, MASK)
    return message


def _values(query: str) -> list[tuple[str, str]]:
    """Split a query, "a=1;b=2" or "a=1&b=2", into pairs of name and value."""
    pairs = []
    for part in query.replace(";", "&").split("&") if query else []:
        name, _, value = part.partition("=")
        pairs.append((name, value))
    return pairs


def _parts(url: str) -> tuple[str, str, str | None, str, str]:
    """Split "x://ada:pw@host/db?k=v" into ("x://", "ada", "pw", "@host/db", "k=v"), with None for no password."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        scheme, rest = "", url
    rest, _, query = rest.partition("?")
    # An @ in a path does not end a user's name.
    if "@" not in rest or rest.startswith("/"):
        return scheme + separator, "", None, rest, query
    head, _, host = rest.rpartition("@")
    user, colon, password = head.partition(":")
    return scheme + separator, user, password if colon else None, f"@{host}", query
