"""``calibrate.baseline``: the parameters of another repair method, validated by the model that the method registers.

A baseline is imported only where ``params.yaml`` names it, as its module needs torch and most commands do not.
"""

from typing import Annotated, Any, cast

from pydantic import BeforeValidator, Field, SerializeAsAny, TypeAdapter

from safegene.workspace.fields import Frozen
from safegene.workspace.plugins import BASELINES

Factor = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


class BaselineParams(Frozen):
    """The parameters of one method; its own model fixes the value of ``method`` and adds the others.

    By convention a parameter that is null is chosen on the validation shots, among the values of its plural.
    """

    method: str


def check_baseline(value: Any) -> Any:
    """A mapping with a ``method`` as the parameters of that method; pydantic refuses any other value later.

    Raises:
        ValueError: there is no such method, or a parameter is wrong.
    """
    if not isinstance(value, dict):
        return value
    method = value.get("method")
    if not isinstance(method, str) or method not in BASELINES:
        raise ValueError(f"expected a 'method' out of {', '.join(sorted(BASELINES))}, got {method!r}")
    model = cast(type[BaselineParams], BASELINES[method].params)
    return TypeAdapter(dict[str, model]).validate_python({method: value})[method]  # type: ignore[valid-type]


Baseline = Annotated[SerializeAsAny[BaselineParams], BeforeValidator(check_baseline)]
