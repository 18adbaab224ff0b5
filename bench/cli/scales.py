"""Guidance scales as the commands take them."""

from pydantic import TypeAdapter, ValidationError

from bench.config.bounds import Guidance
from bench.config.settings import plain_number
from bench.errors import UsageError


def scales_in(guidance: str) -> list[float]:
    """The values of --guidance. Raises UsageError for an invalid scale, and for two that are shown with equal digits.

    The latter would have the same name in tables and folders.
    """
    scales = []
    for part in guidance.split(","):
        try:
            scales.append(plain_number(part.strip()))
        except ValueError as error:
            raise UsageError(f"--guidance {part.strip()} is not a plain decimal number: write it like 2.5") from error
    try:
        TypeAdapter(list[Guidance]).validate_python(scales)
    except ValidationError as error:
        problem = error.errors()[0]
        scale, message = scales[int(problem["loc"][0])], problem["msg"]
        raise UsageError(f"--guidance {scale:g}: {message[0].lower()}{message[1:]}") from error
    names = [f"{abs(scale):g}" for scale in scales]
    repeated = [name for name in names if names.count(name) > 1]
    if repeated:
        raise UsageError(
            f"--guidance {guidance} contains the scale {repeated[0]} twice, to the digits shown in tables: give it once"
        )
    return scales
