"""``calibrate.baseline``: parameters of a rival repair method, checked by the model that the method registered.

A baseline is imported only where ``params.yaml`` names one: its module needs torch, and most commands do not.
"""

from typing import Annotated, Any, cast

from pydantic import BeforeValidator, Field, SerializeAsAny, TypeAdapter

from safegene.workspace.fields import Frozen
from safegene.workspace.plugins import BASELINES

Factor = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


class BaselineParams(Frozen):
    """Parameters of one rival method; its own model gives ``method`` its one value, and adds the others.

    By convention a parameter that may be null is then chosen on the validation shots, among the values of its plural.
    """

    method: str


def check_baseline(value: Any) -> Any:
    """A mapping with a ``method`` as that method's own parameters; anything else is left to pydantic to refuse.

    Raises:
        ValueError: no baseline is called so. A parameter that is wrong is named below its method.
    """
    if not isinstance(value, dict):
        return value
    method = value.get("method")
    if not isinstance(method, str) or method not in BASELINES:
        raise ValueError(f"expected a 'method' out of {', '.join(sorted(BASELINES))}, got {method!r}")
    model = cast(type[BaselineParams], BASELINES[method].params)
    return TypeAdapter(dict[str, model]).validate_python({method: value})[method]  # type: ignore[valid-type]


Baseline = Annotated[SerializeAsAny[BaselineParams], BeforeValidator(check_baseline)]
