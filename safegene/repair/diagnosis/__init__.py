"""Why a repair may fall short of the aligned model, in numbers, before the gate decides: nothing is trained or run.

Two kinds of finding. A *symptom* is what calibrating left on the validation shots; a *cause* is a property of the
fine-tune, the safety vector or the fit that has gone with symptoms before. Each has a limit, a constant that says
what it was chosen from. The outlook is a forecast by one rule: *doubtful* where there is a symptom, where the target is
not of the family, or where too few shots were fitted for the losses to tell; else *reachable*. It has no interval and
no error rate; the gate decides.

`diagnose`: the diagnosis of one target. `matrices`: what the weights tell. `findings`: limits, and what exceeds them.
"""
