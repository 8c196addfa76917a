"""ComputedRows: what a step gave; and a step that failed run row by row, which tells whose fault it was.

A row gives the same bits alone as in a crowd, so that who is not to blame never notices.
"""

import logging
import traceback
from typing import NamedTuple

from kilotron.contexts.dynamic_context import DynamicInferenceContext
from kilotron.scheduling.scheduler import Scheduler
from kilotron.scheduling.step_plan import StepPlan, StepResult
from kilotron.text_generation_controllers.text_generation_controller import TextGenerationController

_log = logging.getLogger(__name__)


class ComputedRows(NamedTuple):
    """What became of the rows of a step."""

    plan: StepPlan
    """With those that went well."""
    result: StepResult
    errors: dict[int, Exception]
    """Request id -> what its row failed with."""


def run_alone(
    plan: StepPlan,
    cause: Exception,
    scheduler: Scheduler,
    context: DynamicInferenceContext,
    controller: TextGenerationController,
) -> ComputedRows:
    """Runs each row of a step that failed with `cause` as a step of its own; a single row is not tried again."""
    if not plan.rows:
        raise cause
    _log.error("step %d failed with %d rows", plan.step, len(plan.rows), exc_info=cause)
    if len(plan.rows) == 1:
        return ComputedRows(StepPlan(plan.step, []), StepResult([]), {plan.rows[0].request_id: cause})
    # What the failed step had made would be kept alive by its traceback; memory may be what it lacked.
    traceback.clear_frames(cause.__traceback__)
    survivors = ComputedRows(StepPlan(plan.step, []), StepResult([]), {})
    for row in plan.rows:
        # The row is admitted anew, so that whatever state the failed step left its slot in does not matter.
        single = StepPlan(plan.step, [row], [scheduler.readmission(row)])
        try:
            result = controller.generate_step(single, context.prepare_batch(single))
        except Exception as error:
            _log.error("step %d failed with request %d alone", plan.step, row.request_id, exc_info=error)
            survivors.errors[row.request_id] = error
            continue
        survivors.plan.rows.append(row)
        survivors.result.token_ids.extend(result.token_ids)
        survivors.result.scores.update(result.scores)
        survivors.result.prompt_scores.update(result.prompt_scores)
        survivors.result.candidates.update(result.candidates)
        survivors.result.faults.update(result.faults)
    # A beam that failed takes the other beams of its request with it.
    rows = survivors.plan.rows
    rows[:] = [row for row in rows if row.request_id not in survivors.errors]
    return survivors
